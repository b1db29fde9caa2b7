//! What the values of annotations are, one parser for each kind. An error is
//! the end of a sentence that has already named the annotation and the value.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cidr::{self, Cidr};
use crate::duration;
use crate::policy::MtlsMode;
use crate::port_set::PortSet;
use crate::quantity::Quantity;
use crate::redirect::Selection;
use crate::sidecar::read_map;

/// The most ports that may have a mode of their own.
const MAX_PORT_MODES: usize = 256;

pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "enabled" | "true" => Ok(true),
        "disabled" | "false" => Ok(false),
        _ => Err("it is neither enabled nor disabled".to_owned()),
    }
}

pub(super) fn show_switch(value: bool) -> String {
    if value { "enabled" } else { "disabled" }.to_owned()
}

/// CPU, to the thousandth of a core; `none` is no value.
pub(super) fn cpu(text: &str) -> Result<Option<Quantity>, String> {
    let quantity = quantity(text)?;
    match &quantity {
        Some(cpu) if cpu.millis().is_none() => {
            Err("it is finer than 1m, a thousandth of a core".to_owned())
        }
        _ => Ok(quantity),
    }
}

/// Memory or storage in whole bytes; `none` is no value. Less than a mebibyte
/// is a forgotten unit, and `m` stands for thousandths.
pub(super) fn bytes(text: &str) -> Result<Option<Quantity>, String> {
    let quantity = quantity(text)?;
    match quantity
        .as_ref()
        .map(|quantity| (quantity.whole(), quantity.is_zero()))
    {
        None | Some((_, true)) => Ok(quantity),
        Some((None, _)) => Err("it is not a whole number of bytes; m means thousandths".to_owned()),
        Some((Some(bytes), _)) if bytes < 1 << 20 => {
            Err("it is less than 1Mi; is a unit missing?".to_owned())
        }
        Some(_) => Ok(quantity),
    }
}

fn quantity(text: &str) -> Result<Option<Quantity>, String> {
    match text {
        "none" => Ok(None),
        _ => match text.parse() {
            Ok(quantity) => Ok(Some(quantity)),
            Err(_) => Err("it is not a Kubernetes quantity".to_owned()),
        },
    }
}

/// A limit of zero is how some people write that there should be none, and the
/// container runtimes take it so.
pub(super) fn limit(quantity: Option<Quantity>) -> Option<Quantity> {
    quantity.filter(|quantity| !quantity.is_zero())
}

pub(super) fn show_quantity(quantity: &Option<Quantity>) -> String {
    quantity
        .as_ref()
        .map_or_else(|| "none".to_owned(), Quantity::to_string)
}

/// `none` and nothing are the empty list.
fn list(text: &str) -> &str {
    if text == "none" { "" } else { text }
}

pub(super) fn ports(text: &str) -> Result<PortSet, String> {
    list(text)
        .parse()
        .map_err(|_| "it is not a list of ports and ranges".to_owned())
}

pub(super) fn port_selection(text: &str) -> Result<Selection<PortSet>, String> {
    Selection::parse(text, ports)
}

pub(super) fn cidrs(text: &str) -> Result<Vec<Cidr>, String> {
    cidr::parse_list(list(text)).map_err(|error| error.to_string())
}

pub(super) fn cidr_selection(text: &str) -> Result<Selection<Vec<Cidr>>, String> {
    Selection::parse(text, cidrs)
}

fn or_none(text: String) -> String {
    if text.is_empty() {
        "none".to_owned()
    } else {
        text
    }
}

pub(super) fn show_ports(ports: &PortSet) -> String {
    or_none(ports.to_string())
}

pub(super) fn show_port_selection(ports: &Selection<PortSet>) -> String {
    match ports {
        Selection::All => "*".to_owned(),
        Selection::Only(ports) => show_ports(ports),
    }
}

pub(super) fn show_cidrs(cidrs: &[Cidr]) -> String {
    or_none(cidr::format_list(cidrs))
}

pub(super) fn show_cidr_selection(cidrs: &Selection<Vec<Cidr>>) -> String {
    match cidrs {
        Selection::All => "*".to_owned(),
        Selection::Only(cidrs) => show_cidrs(cidrs),
    }
}

pub(super) fn mode(text: &str) -> Result<MtlsMode, String> {
    text.parse()
        .map_err(|_| "it is not an mTLS mode".to_owned())
}

pub(super) fn port_modes(text: &str) -> Result<BTreeMap<u16, MtlsMode>, String> {
    if list(text).is_empty() {
        return Ok(BTreeMap::new());
    }
    let modes = read_map(text)?;
    if modes.len() > MAX_PORT_MODES {
        return Err(format!("it names more than {MAX_PORT_MODES} ports"));
    }
    Ok(modes)
}

pub(super) fn show_port_modes(modes: &BTreeMap<u16, MtlsMode>) -> String {
    let items: Vec<_> = modes
        .iter()
        .map(|(port, mode)| format!("{port}={mode}"))
        .collect();
    or_none(items.join(","))
}

pub(super) fn whole_number(text: &str, min: u16, max: u16) -> Result<u16, String> {
    // `u16` would also read "+1".
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if is_number && (min..=max).contains(&number) => Ok(number),
        _ => Err(format!("it is not a whole number from {min} to {max}")),
    }
}

pub(super) fn bounded_duration(text: &str, max: Duration) -> Result<Duration, String> {
    match duration::parse(text) {
        Ok(value) if value <= max => Ok(value),
        Ok(_) => Err(format!("it is longer than {}", duration::format(max))),
        Err(_) => Err("it is not a duration".to_owned()),
    }
}

/// A percentage with at most two decimals, in hundredths of a percent.
pub(super) fn percentage(text: &str) -> Result<u16, String> {
    let error = || "it is not a percentage from 0 to 100 with at most two decimals".to_owned();
    let number = text.strip_suffix('%').unwrap_or(text);
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(decimals) || whole.len() > 3 || decimals.len() > 2 {
        return Err(error());
    }
    let hundredths: u16 = format!("{whole}{decimals:0<2}")
        .parse()
        .map_err(|_| error())?;
    if hundredths > 10_000 {
        return Err(error());
    }
    Ok(hundredths)
}

pub(super) fn show_percentage(hundredths: u16) -> String {
    let text = format!("{}.{:02}", hundredths / 100, hundredths % 100);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

const LOG_LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];

/// A `tracing` filter of levels alone: `info`, or `warn,bulkhead_proxy=debug`.
/// Filters by span and field are left out: they are costly, and a pod's author
/// has no need of them.
pub(super) fn log_filter(text: &str) -> Result<String, String> {
    if text.len() > 256 {
        return Err("it is longer than 256 bytes".to_owned());
    }
    for directive in text.split(',') {
        let (target, level) = match directive.split_once('=') {
            Some((target, level)) => (Some(target), level),
            None => (None, directive),
        };
        if !LOG_LEVELS.contains(&level) {
            return Err(format!("{level:?} is not a level"));
        }
        let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':');
        if target.is_some_and(|name| name.is_empty() || !name.bytes().all(is_name_byte)) {
            return Err(format!("{directive:?} does not name a module"));
        }
    }
    Ok(text.to_owned())
}

/// A reference to a container image, by the characters that references have.
pub(super) fn image(text: &str) -> Result<String, String> {
    let is_reference_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@+[]".contains(&byte);
    let starts_well = text.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '[');
    if !starts_well || text.len() > 512 || !text.bytes().all(is_reference_byte) {
        return Err("it is not a reference to a container image".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_read_to_the_hundredth() {
        for (text, hundredths) in [
            ("0", 0),
            ("1", 100),
            ("100", 10_000),
            ("100%", 10_000),
            ("0.5", 50),
            ("0.05%", 5),
            ("12.34", 1_234),
        ] {
            assert_eq!(percentage(text), Ok(hundredths), "{text}");
            let shown = show_percentage(hundredths);
            assert_eq!(percentage(&shown), Ok(hundredths), "{shown}");
        }
        for text in ["", "-1", "100.01", "1.", ".5", "1.234", "1e1", "50 %", "+1"] {
            assert!(percentage(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn memory_without_a_unit_is_a_slip() {
        assert!(bytes("128").unwrap_err().contains("unit"));
        assert!(bytes("128m").unwrap_err().contains("thousandths"));
        assert!(bytes("128Mi").is_ok() && bytes("0").is_ok() && bytes("none") == Ok(None));
    }

    #[test]
    fn a_filter_names_levels_and_modules_only() {
        for text in ["info", "off", "warn,bulkhead_proxy=debug,h2::codec=trace"] {
            assert_eq!(log_filter(text).as_deref(), Ok(text));
        }
        for text in [
            "",
            "verbose",
            "info,",
            "=info",
            "a b=info",
            "[span]=info",
            "info\n",
        ] {
            assert!(log_filter(text).is_err(), "{text:?}");
        }
    }
}
