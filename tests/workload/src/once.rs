//! One request, one conversation: what Jobs and init containers do.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, interval, timeout};

use crate::load::http;
use crate::output;
use crate::serve::headers;

/// One HTTP request.
#[derive(Args, Clone, Debug)]
pub struct Get {
    /// `http://HOST:PORT/PATH`.
    pub url: String,
    /// How it is made.
    #[command(flatten)]
    pub request: http::RequestOptions,
}

/// Prints status, headers and body, or what went wrong, as one line of JSON.
/// Success is an answer of 2xx.
///
/// # Errors
/// The URL is none.
pub async fn get(options: &Get) -> Result<ExitCode> {
    match http::Client::new(&options.url, &options.request)?
        .answer()
        .await
    {
        Ok(answer) => {
            output::line(&json!({
                "status": answer.status().as_u16(),
                "headers": headers(answer.headers()),
                "body": String::from_utf8_lossy(answer.body()),
            }))?;
            Ok(success(answer.status().is_success()))
        }
        Err((how, error)) => {
            output::line(&json!({ "failed": how, "error": error }))?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// One conversation of lines.
#[derive(Args, Clone, Debug)]
pub struct Tcp {
    /// `HOST:PORT`.
    pub address: String,
    /// Wait for the server's greeting before saying anything.
    #[arg(long)]
    pub server_first: bool,
    /// What to say.
    #[arg(long, default_value = "hello")]
    pub line: String,
    /// All of it may take so long.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub timeout: f64,
}

/// Prints the greeting, after how many milliseconds it came, and what came back,
/// as one line of JSON. Success is the line coming back as it was sent.
///
/// # Errors
/// The conversation cannot be had, or takes too long.
pub async fn tcp(options: &Tcp) -> Result<ExitCode> {
    let within = Duration::from_secs_f64(options.timeout);
    let address = &options.address;
    let talked = timeout(within, converse(options)).await;
    let talked = talked.with_context(|| format!("{address} did not answer within {within:?}"))?;
    let (greeting, echo) = talked.with_context(|| format!("talking with {address}"))?;
    let (text, milliseconds) = greeting.unzip();
    output::line(&json!({ "greeting": text, "greeting_ms": milliseconds, "echo": echo }))?;
    Ok(success(echo == options.line))
}

type Greeting = (String, u128);

async fn converse(options: &Tcp) -> Result<(Option<Greeting>, String)> {
    let began = Instant::now();
    let stream = TcpStream::connect(&options.address).await;
    let mut stream = BufReader::new(stream.context("connecting")?);
    let mut greeting = None;
    if options.server_first {
        let text = read_line(&mut stream)
            .await
            .context("reading the greeting")?;
        greeting = Some((text, began.elapsed().as_millis()));
    }
    let line = format!("{}\n", options.line);
    let sent = stream.get_mut().write_all(line.as_bytes()).await;
    sent.context("sending a line")?;
    let echo = read_line(&mut stream).await.context("reading it back")?;
    Ok((greeting, echo))
}

async fn read_line(stream: &mut BufReader<TcpStream>) -> Result<String> {
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    Ok(line.trim_end().to_owned())
}

/// A file to wait for.
#[derive(Args, Clone, Debug)]
pub struct WaitFile {
    /// Its path.
    pub path: PathBuf,
    /// How long to wait.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    pub timeout: f64,
}

/// Success is the file being there in time.
///
/// # Errors
/// It cannot be told whether it is there.
pub async fn wait_file(options: &WaitFile) -> Result<ExitCode> {
    let ends = Instant::now() + Duration::from_secs_f64(options.timeout);
    let mut looks = interval(Duration::from_millis(50));
    while looks.tick().await < ends {
        let path = &options.path;
        let is_there = path.try_exists();
        if is_there.with_context(|| format!("looking for {}", path.display()))? {
            return Ok(ExitCode::SUCCESS);
        }
    }
    Ok(ExitCode::FAILURE)
}

fn success(is_success: bool) -> ExitCode {
    if is_success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
