//! As much of PromQL as it takes to tell which metrics and labels a query names.
//!
//! It does not judge the grammar (`promtool` does); what it cannot place is told as a metric, and no metric has its name.

/// What a query names.
#[derive(Debug, Default)]
pub(crate) struct Query {
    pub(crate) selectors: Vec<Selector>,
    /// Labels in `by (…)`, `on (…)` and their like.
    pub(crate) grouped: Vec<String>,
    pub(crate) functions: Vec<String>,
}

/// One time series selector, `metric{label="…"}`.
#[derive(Debug)]
pub(crate) struct Selector {
    pub(crate) metric: String,
    pub(crate) labels: Vec<String>,
    /// Stands in `rate(…)` or `increase(…)`, which are for what only grows.
    pub(crate) counted: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Name(String),
    Text,
    Symbol(char),
}

const GROUPINGS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
const OPERATORS: [&str; 6] = ["and", "or", "unless", "bool", "offset", "atan2"];

impl Query {
    pub(crate) fn read(text: &str) -> Self {
        let tokens = tokens(text);
        let mut query = Self::default();
        let mut at = 0;
        while at < tokens.len() {
            let Token::Name(name) = &tokens[at] else {
                at += 1;
                continue;
            };
            let place = at;
            at += 1;
            let opens = |symbol| tokens.get(place + 1) == Some(&Token::Symbol(symbol));
            if GROUPINGS.contains(&name.as_str()) && opens('(') {
                query.grouped.extend(names_until(&tokens, &mut at, ')'));
            } else if OPERATORS.contains(&name.as_str()) {
            } else if opens('(')
                || matches!(tokens.get(at), Some(Token::Name(next)) if GROUPINGS.contains(&next.as_str()))
            {
                query.functions.push(name.clone());
            } else {
                let counted = place >= 2
                    && matches!(&tokens[place - 2], Token::Name(f) if f == "rate" || f == "increase")
                    && tokens[place - 1] == Token::Symbol('(');
                let labels = if opens('{') { names_until(&tokens, &mut at, '}') } else { Vec::new() };
                query.selectors.push(Selector { metric: name.clone(), labels, counted });
            }
        }
        query
    }
}

fn names_until(tokens: &[Token], at: &mut usize, end: char) -> Vec<String> {
    let mut names = Vec::new();
    while *at < tokens.len() && tokens[*at] != Token::Symbol(end) {
        if let Token::Name(name) = &tokens[*at] {
            names.push(name.clone());
        }
        *at += 1;
    }
    names
}

/// Numbers, durations, ranges and Grafana's variables name nothing and are left out.
fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    while let Some(first) = rest.chars().next() {
        let end_of = |test: &dyn Fn(char) -> bool| rest.find(|c| !test(c)).unwrap_or(rest.len());
        let length = match first {
            quote @ ('"' | '\'' | '`') => {
                tokens.push(Token::Text);
                1 + rest[1..].find(quote).expect("a string ends") + 1
            }
            '[' => rest.find(']').expect("a range ends") + 1,
            '$' => 1 + rest[1..].find(|c| !name(c)).unwrap_or(rest.len() - 1),
            '#' => rest.find('\n').unwrap_or(rest.len()),
            c if c.is_ascii_digit() => end_of(&|c| name(c) || c == '.'),
            c if name(c) => {
                let length = end_of(&name);
                tokens.push(Token::Name(rest[..length].to_owned()));
                length
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push(Token::Symbol(c));
                }
                c.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    tokens
}
