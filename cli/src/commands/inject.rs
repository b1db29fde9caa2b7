//! `bulkhead inject`: what the webhook would do, to manifests in files.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::bail;
use bulkhead_core::identity::TrustDomain;
use bulkhead_core::pod_settings::PodSettings;
use bulkhead_core::resources::Level;
use bulkhead_core::sidecar::default_trust_domain;
use bulkhead_inject::Decision;
use bulkhead_inject::Defaults;
use bulkhead_inject::Namespace;
use clap::Args;
use serde_json::Value;

use crate::manifest;
use crate::manifest::Object;
use crate::manifest::Stream;

/// Add the sidecar to the pods and workloads of a stream of manifests.
///
/// Everything else in the stream passes through as it is. Unlike the webhook,
/// which injects where somebody asked for it, this command injects every
/// workload that does not opt out; labels of a Namespace in the same stream
/// count. What was done is said on standard error. Where anything is refused,
/// nothing is written.
#[derive(Debug, Args)]
pub struct Inject {
    /// Manifests in YAML or JSON; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// The image of the proxy and of the init container
    #[arg(long, default_value = concat!("ghcr.io/bulkhead/proxy:", env!("CARGO_PKG_VERSION")))]
    image: String,
    /// A Secret with which the image is fetched; may be given more than once
    #[arg(long = "image-pull-secret", value_name = "NAME")]
    image_pull_secrets: Vec<String>,
    /// The trust domain of the workloads' identities
    #[arg(long, value_name = "NAME", default_value_t = default_trust_domain())]
    trust_domain: TrustDomain,
    /// host:port of the certificate authority
    #[arg(long, value_name = "ADDRESS")]
    ca_address: Option<String>,
    /// host:port of control, or none
    #[arg(long, value_name = "ADDRESS")]
    control_address: Option<String>,
    /// The namespace of objects that name none
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    namespace: String,
    /// The namespace of Bulkhead itself
    #[arg(long, value_name = "NAME", default_value = bulkhead_inject::DEFAULT_SYSTEM_NAMESPACE)]
    system_namespace: String,
    /// A default for what an annotation sets, such as mtls-mode=STRICT; may be
    /// given more than once, see `bulkhead explain`
    #[arg(long = "set", value_name = "ANNOTATION=VALUE")]
    settings: Vec<String>,
}

impl Inject {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let text = manifest::read(&self.file)?;
        let mut injector = Injector {
            defaults: self.defaults()?,
            namespaces: BTreeMap::new(),
            default_namespace: self.namespace,
            refused: 0,
            report: std::io::stderr().lock(),
        };
        let stream = Stream::parse(&text)?;
        for value in stream.values() {
            injector.learn_namespaces(value);
        }
        let injected = stream.edited(|place, value| injector.edit(place, value))?;
        match injector.refused {
            0 => Ok(std::io::stdout().lock().write_all(injected.as_bytes())?),
            1 => bail!("an object was refused, so nothing was written"),
            refused => bail!("{refused} objects were refused, so nothing was written"),
        }
    }

    fn defaults(&self) -> anyhow::Result<Defaults> {
        let mut settings = PodSettings::new(self.trust_domain.clone(), self.image.clone());
        for setting in &self.settings {
            set(&mut settings, setting)?;
        }
        let mut defaults = Defaults::installed_in(&self.system_namespace, settings)
            .context("reading --system-namespace")?;
        let sidecar = &mut defaults.settings.sidecar;
        for (address, given) in [
            (&mut sidecar.ca_address, &self.ca_address),
            (&mut sidecar.control_address, &self.control_address),
        ] {
            if let Some(given) = given {
                address.clone_from(given);
            }
        }
        Ok(Defaults {
            image_pull_secrets: self.image_pull_secrets.clone(),
            inject_by_default: true,
            ..defaults
        })
    }
}

/// Sets what an annotation would, for all pods.
fn set(settings: &mut PodSettings, setting: &str) -> anyhow::Result<()> {
    let (name, value) = setting
        .split_once('=')
        .with_context(|| format!("--set {setting:?} is not of the form ANNOTATION=VALUE"))?;
    let row = super::explain::find(name)?;
    row.set(settings, value, Level::Installation)?;
    settings.resources.reconcile()?;
    Ok(())
}

/// What is known while a stream is worked through.
struct Injector<W> {
    defaults: Defaults,
    /// The namespaces that are in the stream themselves.
    namespaces: BTreeMap<String, Namespace>,
    default_namespace: String,
    refused: usize,
    report: W,
}

impl<W: Write> Injector<W> {
    /// Notes the labels and annotations of a Namespace, or of those in a List.
    fn learn_namespaces(&mut self, value: &Value) {
        let items = match value.get("items") {
            Some(Value::Array(items)) if value["kind"] == "List" => items.as_slice(),
            _ => std::slice::from_ref(value),
        };
        for item in items.iter().filter(|item| item["kind"] == "Namespace") {
            let metadata = &item["metadata"];
            if let Some(name) = metadata["name"].as_str() {
                let namespace = Namespace {
                    name: name.to_owned(),
                    labels: texts(&metadata["labels"]),
                    annotations: texts(&metadata["annotations"]),
                };
                self.namespaces.insert(name.to_owned(), namespace);
            }
        }
    }

    /// Injects the objects of one value; true where any was changed.
    fn edit(&mut self, place: &str, value: &mut Value) -> anyhow::Result<bool> {
        let mut is_changed = false;
        for object in manifest::objects(value) {
            is_changed |= self.inject(place, object)?;
        }
        Ok(is_changed)
    }

    fn inject(&mut self, place: &str, mut object: Object<'_>) -> anyhow::Result<bool> {
        let reference = object.reference();
        let namespace = self.namespace(object.namespace());
        if !object.is_pod() {
            // A template has no owner yet to take the workload's name from.
            let name = object.name().unwrap_or_default();
            name.clone_into(&mut self.defaults.settings.sidecar.workload);
        }
        let why_no_pod = object.why_no_pod();
        let Some(pod) = object.pod_mut() else {
            writeln!(self.report, "{reference}: left as it is ({why_no_pod})")?;
            return Ok(false);
        };
        match bulkhead_inject::inject_in_place(pod, &namespace, &self.defaults) {
            Decision::Inject(injection) => {
                let is_changed = !injection.patch.0.is_empty();
                let what = if is_changed {
                    "injected"
                } else {
                    "already injected"
                };
                writeln!(
                    self.report,
                    "{reference}: {what} ({})",
                    injection.reason.as_str()
                )?;
                for warning in &injection.warnings {
                    writeln!(self.report, "{reference}: warning: {warning}")?;
                }
                Ok(is_changed)
            }
            Decision::Skip(reason) => {
                let (word, explanation) = (reason.as_str(), reason.explanation());
                writeln!(self.report, "{reference}: skipped ({word}): {explanation}")?;
                Ok(false)
            }
            Decision::Refuse(refusal) => {
                self.refused += 1;
                let (word, message) = (refusal.reason.as_str(), refusal.message);
                writeln!(
                    self.report,
                    "{reference}: refused ({word}), {place}: {message}"
                )?;
                Ok(false)
            }
        }
    }

    fn namespace(&self, name: Option<&str>) -> Namespace {
        let name = name.unwrap_or(&self.default_namespace);
        self.namespaces
            .get(name)
            .cloned()
            .unwrap_or_else(|| Namespace {
                name: name.to_owned(),
                ..Namespace::default()
            })
    }
}

/// The strings of a map.
fn texts(map: &Value) -> BTreeMap<String, String> {
    map.as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect()
}
