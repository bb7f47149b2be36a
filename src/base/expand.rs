//! `${VARIABLE}` in the texts of a TOML document.

use std::collections::BTreeMap;

use crate::base::environment::Environment;
use crate::base::error::Error;
use crate::base::secret::Secret;

/// A variable that a text had in it, with its value.
#[derive(Debug, Clone)]
pub(crate) struct Inserted {
    pub(crate) variable: String,
    pub(crate) value: Secret,
}

/// The variables that the texts of a document had in them, by the path of the key.
pub(crate) type Insertions = BTreeMap<String, Vec<Inserted>>;

/// Puts the values of variables into all texts of this table, whose path is `above`.
///
/// # Errors
/// [`Error::Config`] of the first key whose text has a variable that is not set, or a `${` without a name.
pub(crate) fn expand(
    above: &str,
    table: &mut toml::Table,
    environment: &Environment,
    insertions: &mut Insertions,
) -> Result<(), Error> {
    for (name, value) in table {
        let path = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        expand_value(&path, value, environment, insertions)?;
    }
    Ok(())
}

fn expand_value(
    path: &str,
    value: &mut toml::Value,
    environment: &Environment,
    insertions: &mut Insertions,
) -> Result<(), Error> {
    match value {
        toml::Value::String(text) if text.contains('$') => {
            let (expanded, inserted) = expand_text(path, text, environment)?;
            *text = expanded;
            if !inserted.is_empty() {
                insertions.entry(path.to_owned()).or_default().extend(inserted);
            }
            Ok(())
        }
        toml::Value::Table(table) => expand(path, table, environment, insertions),
        toml::Value::Array(values) => {
            values.iter_mut().try_for_each(|value| expand_value(path, value, environment, insertions))
        }
        _ => Ok(()),
    }
}

/// The text with the values of its variables. A `$$` is one dollar. Any other `$` stays.
fn expand_text(path: &str, text: &str, environment: &Environment) -> Result<(String, Vec<Inserted>), Error> {
    let (mut expanded, mut inserted, mut rest) = (String::new(), Vec::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        rest = if let Some(after) = after.strip_prefix('$') {
            expanded.push('$');
            after
        } else if let Some(after) = after.strip_prefix('{') {
            let (variable, after) = after.split_once('}').filter(|(name, _)| is_name(name)).ok_or_else(|| {
                Error::config(
                    path,
                    "has a `${` without the name of a variable and a `}` behind it; write `$${` for the signs",
                )
            })?;
            let Some(value) = environment.get(variable)? else {
                return Err(Error::config(path, format!("needs the variable {variable}, which is not set")));
            };
            expanded.push_str(&value);
            inserted.push(Inserted { variable: variable.to_owned(), value: value.into() });
            after
        } else {
            expanded.push('$');
            after
        };
    }
    expanded.push_str(rest);
    Ok((expanded, inserted))
}

fn is_name(text: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    text.starts_with(is_letter) && text.chars().all(|c| is_letter(c) || c.is_ascii_digit())
}

/// The problem of a value without the values of the variables in it. A path shows the variables in their place. Any
/// other text that has a value in it is withheld.
pub(crate) fn without_values(key: &str, problem: &str, inserted: &[Inserted]) -> String {
    let mut text = problem.to_owned();
    for Inserted { variable, value } in inserted.iter().filter(|inserted| problem.contains(inserted.value.expose())) {
        text = match key.ends_with("_file") {
            true => text.replace(value.expose(), &format!("${{{variable}}}")),
            false => {
                return format!("cannot be used; the reason is withheld, because it shows the value of {variable}");
            }
        };
    }
    text
}
