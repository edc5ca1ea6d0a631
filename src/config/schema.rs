//! The JSON Schema of the YAML file, for editors; made of the very structs that read it.

use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::transform_subschemas;
use serde_json::{Value, json};

use super::raw;

/// The schema as indented JSON, with a line end.
pub fn schema() -> String {
    let mut schema = SchemaSettings::draft07().into_generator().into_root_schema_for::<raw::Config>();
    allow_environment(&mut schema);
    schema.insert("title".to_owned(), json!("letta-gateway"));
    format!("{:#}\n", schema.as_value())
}

/// `${NAME}` may stand for any scalar, not for text only.
fn allow_environment(schema: &mut Schema) {
    // first, or what is added here were gone through as well
    transform_subschemas(&mut allow_environment, schema);
    // what has no default was left out of the default struct, which is nobody's default
    if schema.get("default") == Some(&Value::Null) {
        schema.remove("default");
    }
    let environment = json!({ "type": "string", "pattern": ENVIRONMENT });
    if let Some(Value::Array(alternatives)) = schema.get_mut("oneOf") {
        alternatives.push(environment);
    } else if let Some(words) = schema.remove("enum") {
        schema.remove("type");
        schema.insert("anyOf".to_owned(), json!([{ "type": "string", "enum": words }, environment]));
    } else {
        let types: Vec<Value> = match schema.get("type") {
            Some(Value::Array(types)) => types.clone(),
            Some(one) => vec![one.clone()],
            None => return,
        };
        // a pattern speaks of strings only
        if types.iter().any(|one| one == "integer" || one == "boolean") && !types.contains(&json!("string")) {
            schema.insert("type".to_owned(), types.into_iter().chain([json!("string")]).collect());
            schema.insert("pattern".to_owned(), json!(ENVIRONMENT));
        }
    }
}

const ENVIRONMENT: &str = r"\$\{.+\}";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::config::{DEFAULT, document, read};

    const SHIPPED: &str = include_str!("../../config/schema.json");

    #[test]
    fn the_shipped_schema_is_the_one_of_the_structs() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/schema.json");
        assert!(SHIPPED == schema(), "write it anew: letta-gateway config schema > {}", path.display());
    }

    /// The default file with the options it leaves out.
    fn whole() -> String {
        let line = |line: &str| match line.strip_prefix('#') {
            Some(option) if !option.is_empty() && !option.trim_start().starts_with('#') && !is_prose(line) => {
                option.to_owned()
            }
            _ => line.to_owned(),
        };
        DEFAULT.lines().map(line).collect::<Vec<_>>().join("\n")
    }

    fn is_prose(line: &str) -> bool {
        line.strip_prefix("# ").is_some_and(|rest| !rest.starts_with(' '))
    }

    fn raw_of(text: &str) -> raw::Config {
        let env = |name: &str| (name == "LETTA_GATEWAY_KEY_HASH").then(|| format!("sha256:{:064}", 1));
        let (mut document, problems) = document::parse(text, "gateway.yaml", &env).unwrap();
        let read = read::read::<raw::Config>(&mut document, "gateway.yaml");
        assert_eq!((problems, read.unknown_keys, read.misfits), (vec![], vec![], vec![]));
        read.value.unwrap()
    }

    #[test]
    fn the_default_file_says_what_the_defaults_are() {
        let mut file = raw_of(DEFAULT);
        // what has no default
        let (listener, server) = (file.listeners.pop().unwrap(), file.upstreams["letta"].servers[0].clone());
        assert_eq!(listener, raw::Listener { address: listener.address.clone(), ..Default::default() });
        assert_eq!(server, raw::Server { url: server.url.clone(), ..Default::default() });
        let upstream = file.upstreams.remove("letta").unwrap();
        assert_eq!(upstream, raw::Upstream { servers: upstream.servers.clone(), ..Default::default() });
        let key = file.keys.pop().unwrap();
        assert_eq!(key.plan, raw::Key::default().plan);
        assert_eq!(file, raw::Config::default());
    }

    #[test]
    fn the_options_it_leaves_out_stand_there_with_their_defaults() {
        let mut file = raw_of(&whole());
        let tls = file.listeners.pop().unwrap().tls.unwrap();
        assert_eq!((tls.min_version, tls.certificates.len()), (raw::Tls::default().min_version, 1));
        let redis = file.store.redis.unwrap();
        let raw::Redis { url, sentinel_username, sentinel_password, timeout: _, prefix: _, ca_file } = redis.clone();
        let meant = raw::Redis { url, sentinel_username, sentinel_password, ca_file, ..Default::default() };
        assert_eq!(redis, meant);
    }

    #[test]
    fn the_default_file_and_the_schema_have_the_same_options() {
        let schema: Value = serde_json::from_str(&schema()).unwrap();
        let (mut known, mut written) = (BTreeSet::new(), BTreeSet::new());
        options(&schema, &schema, "", &mut known);
        // a list of rates has the options of one
        known = known.into_iter().map(|path| path.replace(".rate[]", ".rate")).collect();
        let (document, _) = document::parse(&whole(), "gateway.yaml", &|_| Some("1".to_owned())).unwrap();
        // names of one's own, and places in lists, are all alike
        for path in document
            .paths()
            .into_iter()
            .map(|path| path.replace("upstreams.letta", "upstreams.*").replace("plans.standard", "plans.*"))
        {
            let path = path.replace("[0]", "[]").replace("[1]", "[]");
            written.insert(path);
        }
        let unwritten: Vec<_> = known.difference(&written).collect();
        assert!(unwritten.is_empty(), "not in config/gateway.yaml: {unwritten:?}");
        let unknown: Vec<_> =
            written.iter().filter(|path| !path.is_empty() && !path.ends_with(']') && !known.contains(*path)).collect();
        assert!(unknown.is_empty(), "not in the schema: {unknown:?}");
    }

    /// Every option's path below `schema`.
    fn options(root: &Value, schema: &Value, path: &str, found: &mut BTreeSet<String>) {
        let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        if let Some(name) = schema["$ref"].as_str() {
            options(root, &root["definitions"][name.rsplit('/').next().unwrap()], path, found);
        }
        for part in ["allOf", "anyOf"].iter().filter_map(|part| schema[part].as_array()).flatten() {
            options(root, part, path, found);
        }
        for (name, option) in schema["properties"].as_object().into_iter().flatten() {
            found.insert(below(name));
            options(root, option, &below(name), found);
        }
        if schema["items"].is_object() {
            options(root, &schema["items"], &format!("{path}[]"), found);
        }
        if schema["additionalProperties"].is_object() {
            found.insert(below("*"));
            options(root, &schema["additionalProperties"], &below("*"), found);
        }
    }
}
