//! `bulkhead uninject`: the way back from `bulkhead inject`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use crate::manifest;
use crate::manifest::Stream;

/// Take the sidecar out of the pods and workloads of a stream of manifests.
///
/// The pods come out as they went into `bulkhead inject`, probes included.
/// Everything else in the stream passes through as it is.
#[derive(Debug, Args)]
pub struct Uninject {
    /// Manifests in YAML or JSON; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
}

impl Uninject {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let text = manifest::read(&self.file)?;
        let mut report = std::io::stderr().lock();
        let uninjected = Stream::parse(&text)?.edited(|_, value| {
            let mut is_changed = false;
            for mut object in manifest::objects(value) {
                let reference = object.reference();
                let why_no_pod = object.why_no_pod();
                let Some(pod) = object.pod_mut() else {
                    writeln!(report, "{reference}: left as it is ({why_no_pod})")?;
                    continue;
                };
                let before = pod.take();
                *pod = bulkhead_inject::uninject(before.clone());
                if *pod == before {
                    writeln!(report, "{reference}: left as it is (has no sidecar)")?;
                } else {
                    writeln!(report, "{reference}: sidecar taken out")?;
                    is_changed = true;
                }
            }
            Ok(is_changed)
        })?;
        Ok(std::io::stdout().lock().write_all(uninjected.as_bytes())?)
    }
}
