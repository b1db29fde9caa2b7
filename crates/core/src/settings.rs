//! Reading a program's settings from named variables: typed, and with every
//! error reported at once, so that a person mends a deployment in one go.
//!
//! The source of the variables is passed in. Only a program's `config.rs` hands
//! in the real environment; tests hand in a map.

use std::cell::RefCell;
use std::fmt::Display;
use std::str::FromStr;

/// Named variables being read, and what was wrong with them so far.
///
/// Every getter returns a value, the default where the variable is bad; the
/// error is kept, and [`Settings::finish`] reports all of them.
pub struct Settings<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    errors: RefCell<Vec<String>>,
}

impl<'a> Settings<'a> {
    /// A variable that is set to nothing counts as not set, because that is
    /// what a template with an empty value produces.
    pub fn new(lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self {
            lookup,
            errors: RefCell::default(),
        }
    }

    /// The text of a variable, where it is set.
    pub fn text(&self, name: &str) -> Option<String> {
        (self.lookup)(name).filter(|value| !value.is_empty())
    }

    /// The text of a variable that must be set.
    pub fn required(&self, name: &str) -> String {
        self.text(name).unwrap_or_else(|| {
            self.reject(name, "is not set, and there is no default");
            String::new()
        })
    }

    /// The value of a variable, or `default` where it is not set.
    pub fn or<T>(&self, name: &str, default: T) -> T
    where
        T: FromStr<Err: Display>,
    {
        self.parsed(name, T::from_str).unwrap_or(default)
    }

    /// The value of a variable that may be absent.
    pub fn optional<T>(&self, name: &str) -> Option<T>
    where
        T: FromStr<Err: Display>,
    {
        self.parsed(name, T::from_str)
    }

    /// The value of a variable by a parser of the caller's.
    pub fn parsed<T, E: Display>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(name)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(error) => {
                self.reject(name, &format!("is not usable: {error}"));
                None
            }
        }
    }

    /// Notes what is wrong with a variable.
    pub fn reject(&self, name: &str, problem: &str) {
        self.errors.borrow_mut().push(format!("{name} {problem}"));
    }

    /// `value`, unless any variable was bad.
    pub fn finish<T>(self, value: T) -> Result<T, SettingsError> {
        let errors = self.errors.into_inner();
        if errors.is_empty() {
            Ok(value)
        } else {
            Err(SettingsError(errors))
        }
    }
}

/// Everything that was wrong with the settings, a line each.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("reading the settings failed:\n  {}", .0.join("\n  "))]
pub struct SettingsError(pub Vec<String>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_errors_are_reported_together_and_name_their_variable() {
        let lookup = |name: &str| match name {
            "PORT" => Some("eighty".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let settings = Settings::new(&lookup);
        assert_eq!(settings.or("PORT", 80_u16), 80);
        assert_eq!(settings.or("EMPTY", 7_u16), 7);
        settings.required("ADDRESS");
        let SettingsError(errors) = settings.finish(()).unwrap_err();
        assert_eq!(errors.len(), 2);
        assert!(errors[0].starts_with("PORT is not usable"));
        assert!(errors[1].starts_with("ADDRESS is not set"));
    }
}
