//! Annotations, from anybody who may create pods.
//!
//! Each line of the input is `name=value`; a name that is a number stands for
//! that row of the table, which is easier to guess than `bulkhead.io/…`.

#![no_main]

use bulkhead_core::annotation::{self, TABLE};
use bulkhead_core::pod_settings::PodSettings;
use bulkhead_core::resources::Level;
use bulkhead_core::sidecar::SidecarConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let annotations: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name_of(name), value))
        .collect();
    let trust_domain = "cluster.local".parse().expect("a trust domain");
    let mut settings = PodSettings::new(trust_domain, "proxy".to_owned());
    for level in [Level::Namespace, Level::Pod] {
        if let Err(errors) = annotation::apply(&mut settings, annotations.iter().copied(), level) {
            assert!(errors.iter().all(|error| !error.to_string().is_empty()));
            return;
        }
    }

    // What was accepted can be written again, and reaches the proxy as it is.
    for row in TABLE {
        let shown = row.show(&settings);
        let mut again = settings.clone();
        if row.set(&mut again, &shown, Level::Pod).is_ok() {
            assert_eq!(row.show(&again), shown, "{}", row.name);
        }
    }
    let mut sidecar = settings.sidecar;
    sidecar.namespace = "shop".to_owned();
    sidecar.service_account = "cart".to_owned();
    let env = sidecar.to_env();
    let lookup = |name: &str| {
        let found = env.iter().find(|(other, _)| *other == name)?;
        Some(found.1.clone())
    };
    let read = SidecarConfig::from_env(&lookup).expect("what the webhook writes, the proxy reads");
    assert_eq!(read, sidecar);
});

fn name_of(name: &str) -> &str {
    match name.parse::<usize>() {
        Ok(row) => TABLE[row % TABLE.len()].name,
        Err(_) => name,
    }
}
