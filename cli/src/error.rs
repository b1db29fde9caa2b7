//! Errors as people read them: each cause once, and of what the API server said
//! its sentence, without the object around it.

use std::error::Error;
use std::fmt;

/// How a command ended that has an exit code of its own for it.
#[derive(Debug)]
pub struct Ended {
    pub code: u8,
    /// What is so, and what to do.
    pub message: String,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Ended {}

/// An error and its causes on one line.
///
/// Libraries write a cause into their own message and name it again as their
/// source; what stands there already is not said twice.
pub fn describe(error: &anyhow::Error) -> String {
    causes(error.as_ref())
}

/// What the API server said, or why it could not be asked.
pub(crate) fn of_kube(error: &kube::Error) -> String {
    causes(error)
}

fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let api = match error.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) if !status.message.is_empty() => Some(status),
            _ => None,
        };
        let said = api.map_or_else(|| error.to_string(), |status| status.message.clone());
        if !text.contains(&said) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&said);
        }
        next = if api.is_some() { None } else { error.source() };
    }
    text
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn what_the_api_server_said_is_its_sentence_alone() {
        let said = "deployments.apps \"checkout\" not found";
        let error = kube::Error::Api(Box::new(Status::failure(said, "NotFound").with_code(404)));
        let error = anyhow::Error::new(error).context("looking up checkout failed");
        assert_eq!(
            describe(&error),
            "looking up checkout failed: deployments.apps \"checkout\" not found"
        );
    }

    #[test]
    fn a_cause_that_was_said_is_not_said_again() {
        let cause = std::io::Error::from(std::io::ErrorKind::NotFound);
        let error = anyhow::Error::new(cause)
            .context("failed to read the file: entity not found")
            .context("reading /kubeconfig failed");
        assert_eq!(
            describe(&error),
            "reading /kubeconfig failed: failed to read the file: entity not found"
        );
    }
}
