//! A value that is never shown: literal, from `${ENV}`, or in a file of its own (`file:/run/secrets/…`).

use std::fmt;
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

/// A secret as the configuration gives it.
#[derive(Clone, PartialEq, Eq, Default)]
pub(super) struct Secret(String);

/// A secret's file is larger than this: it is not a secret's file.
const MOST_BYTES: u64 = 64 * 1024;

impl Secret {
    /// The file that holds it, if one does; relative to the configuration's folder.
    pub(super) fn file(&self, folder: &Path) -> Option<PathBuf> {
        self.0.strip_prefix("file:").map(|path| folder.join(path.trim()))
    }

    /// Its text, read from its file if need be; one line end after it does not count.
    pub(super) fn resolve(&self, folder: &Path) -> Result<String, String> {
        let Some(file) = self.file(folder) else { return Ok(self.0.clone()) };
        let unreadable = |why: &dyn fmt::Display| format!("the file {} cannot be read: {why}", file.display());
        let size = std::fs::metadata(&file).map_err(|error| unreadable(&error))?.len();
        if size > MOST_BYTES {
            return Err(unreadable(&format_args!("it has {size} bytes, which is no secret")));
        }
        let text = std::fs::read_to_string(&file).map_err(|error| unreadable(&error))?;
        Ok(text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line)).to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.0.is_empty() { "" } else { "***" })
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A secret: ${ENV}, file:/path, or the text itself.",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown() {
        let secret = Secret("hunter2".to_owned());
        assert_eq!(format!("{secret:?}"), "***");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"***\"");
    }

    #[test]
    fn a_secret_comes_from_its_file_without_the_line_end() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("password"), "hunter2\n\r\n").unwrap();
        assert_eq!(Secret("file:password".to_owned()).resolve(folder.path()), Ok("hunter2\n".to_owned()));
        let missing = Secret("file:nowhere".to_owned()).resolve(folder.path()).unwrap_err();
        assert!(missing.contains("nowhere cannot be read"), "{missing}");
    }
}
