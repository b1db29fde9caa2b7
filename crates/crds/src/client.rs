//! How our programs reach the API server.

use std::time::Duration;

use kube::{Client, Config};

/// How long a connection may be silent while something is expected on it. Whoever
/// asks one thing sets a deadline of its own, of seconds; this one is for what has
/// none, as the list before a watch. A watch is ended by the API server itself
/// after 290 s and hears from it each minute, so that only one whose other end is
/// gone is silent for so long.
const SILENT_FOR: Duration = Duration::from_secs(310);

/// Connects as whoever this process is: a pod's ServiceAccount, or the user of a
/// kubeconfig.
pub async fn connect() -> kube::Result<Client> {
    let config = Config::infer().await.map_err(kube::Error::InferConfig)?;
    Client::try_from(with_deadlines(config))
}

fn with_deadlines(mut config: Config) -> Config {
    config.read_timeout = Some(SILENT_FOR);
    // A connection that waited in the pool was not silent: nothing was asked.
    config.reset_reader_on_write = true;
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Secret;
    use kube::Api;
    use tokio::net::TcpListener;

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_never_answers_is_not_waited_for_for_ever() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap();
        let config = Config::new(format!("http://{address}").parse().unwrap());
        let client = Client::try_from(with_deadlines(config)).unwrap();
        let secrets: Api<Secret> = Api::namespaced(client, "default");
        let asked = tokio::time::timeout(2 * SILENT_FOR, secrets.get("a")).await;
        asked.expect("it gives up by itself").unwrap_err();
    }
}
