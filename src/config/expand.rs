//! `${NAME}` and `${NAME:-default}` in a text; `$${` is a literal `${`.

/// Looks up an environment variable.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// `text` with the environment put in; None if there is nothing to put in.
pub(super) fn expand(text: &str, env: Environment<'_>) -> Result<Option<String>, String> {
    if !text.contains("${") {
        return Ok(None);
    }
    let mut whole = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, after) = (rest.get(..start).unwrap_or_default(), rest.get(start + 2..).unwrap_or_default());
        if let Some(literal) = before.strip_suffix('$') {
            whole.push_str(literal);
            whole.push_str("${");
            rest = after;
            continue;
        }
        whole.push_str(before);
        let Some((inside, after)) = after.split_once('}') else {
            return Err("a \"${\" is not closed; write ${NAME} or ${NAME:-default}, or $${ for a literal ${".to_owned());
        };
        whole.push_str(&variable(inside, env)?);
        rest = after;
    }
    whole.push_str(rest);
    Ok(Some(whole))
}

fn variable(inside: &str, env: Environment<'_>) -> Result<String, String> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let named = !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !named || default.is_some_and(|default| default.contains("${")) {
        return Err(
            "only ${NAME} and ${NAME:-default} can be put in, not one inside another; $${ is a literal ${".to_owned()
        );
    }
    match (env(name), default) {
        // as in a shell, an empty variable counts as unset where a default is given
        (Some(value), Some(default)) if value.is_empty() => Ok(default.to_owned()),
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(format!(
            "the environment variable {name} is not set; set it, write its value here, or give a default with ${{{name}:-…}}"
        )),
    }
}
