//! The file that `keys_file` names: a list of keys, read as the one under `keys` is.

use std::path::Path;

use super::expand::Environment;
use super::settings::Known;
use super::{document, raw, read};

/// What was read of a file of keys.
pub(super) struct KeysFile {
    /// None: what stands there cannot be numbered, and only that is told.
    pub(super) keys: Option<Vec<raw::Key>>,
    pub(super) known: Known,
}

/// Reads the file at `path`; a text if it cannot be.
pub(super) fn read(path: &Path, env: Environment<'_>) -> Result<KeysFile, String> {
    let unreadable = |why: &str| format!("the file {} cannot be read: {why}", path.display());
    let text = std::fs::read(path).map_err(|error| unreadable(&error.to_string()))?;
    let text = String::from_utf8(text).map_err(|_| unreadable("it is not UTF-8 text"))?;
    let file = path.display().to_string();
    // its paths are those of the list it goes on with
    let (mut document, mut problems) = match document::parse_below("keys", &text, &file, env) {
        Ok(read) => read,
        Err(problem) => {
            return Ok(KeysFile { keys: None, known: Known::unread(file, problem) });
        }
    };
    let read = read::read_list::<raw::Key>(&mut document, &file);
    problems.extend(read.unknown_keys);
    problems.extend(read.misfits);
    let broken = document.broken();
    let keys = read.value.filter(|_| !broken.iter().any(|path| super::hides_others(path)));
    Ok(KeysFile { keys, known: Known::new(file, document, broken, read.meant, problems) })
}
