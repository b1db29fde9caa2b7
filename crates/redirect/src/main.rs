//! Sets the rules that hand the pod's traffic to the proxy, and ends. Settings
//! come from the environment (`BULKHEAD_REDIRECT_*`), as the webhook writes it.

use std::process::ExitCode;

use bulkhead_redirect::table::Table;
use bulkhead_redirect::{app, config};

const USAGE: &str = "\
usage: bulkhead-init          sets the rules of this network namespace, and checks them
       bulkhead-init print    shows the rules that it would set, in nft's language
       bulkhead-init remove   takes the rules away";

/// The exit code of a program that was set up wrongly (sysexits, EX_USAGE).
const EX_USAGE: u8 = 64;

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the container's log is this program's output"
)]
fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        [] => install(),
        ["print"] => print(),
        ["remove"] => remove(),
        ["--help" | "-h"] => Ok(USAGE.to_owned()),
        ["--version"] => Ok(format!("bulkhead-init {}", env!("CARGO_PKG_VERSION"))),
        _ => Err((EX_USAGE, USAGE.to_owned())),
    };
    match result {
        Ok(text) => {
            println!("{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err((code, text)) => {
            eprintln!("bulkhead-init: {text}");
            ExitCode::from(code)
        }
    }
}

type Outcome = Result<String, (u8, String)>;

fn install() -> Outcome {
    let config = config::from_environment().map_err(usage)?;
    let installed = app::install(&config).map_err(failure)?;
    let done = if installed.changed {
        "these rules are set now"
    } else {
        "these rules were set already; nothing was changed"
    };
    let mut lines = vec![
        installed.table.to_string(),
        format!("bulkhead-init: {done}"),
    ];
    lines.extend(
        installed
            .tried
            .iter()
            .map(|outcome| format!("bulkhead-init: {outcome}")),
    );
    Ok(lines.join("\n"))
}

fn print() -> Outcome {
    let config = config::from_environment().map_err(usage)?;
    Ok(Table::of(&config).to_string())
}

fn remove() -> Outcome {
    let removed = app::remove().map_err(failure)?;
    let done = if removed {
        "the rules are gone; connections that are open stay as they are"
    } else {
        "there were no rules"
    };
    Ok(format!("bulkhead-init: {done}"))
}

fn usage(error: impl std::fmt::Display) -> (u8, String) {
    (EX_USAGE, error.to_string())
}

fn failure(error: impl std::fmt::Display) -> (u8, String) {
    (1, error.to_string())
}
