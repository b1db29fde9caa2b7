//! What a stream is told next.

use std::collections::BTreeSet;
use std::time::Instant;

use bulkhead_core::discovery::{BypassPhase, Resource, ResourceKind, ResourceName};
use bulkhead_proto::discovery::decode;
use bulkhead_proto::xds::{Response, Versioned};

use super::State;
use super::stream::{Stream, Told};
use crate::object::Key;

/// The kinds in the order in which they are told: the emergency first.
const ORDER: [ResourceKind; 4] = [
    ResourceKind::Bypass,
    ResourceKind::Inbound,
    ResourceKind::Destination,
    ResourceKind::Endpoints,
];
/// How much one answer holds before the rest waits for the next, in bytes. It
/// is far below what a proxy reads, and the greatest resource still fits.
const ENOUGH: usize = 512 * 1024;
/// How many names one answer holds.
const MANY: usize = 1000;

impl State {
    /// The next answer, and since when it was due where that makes all that was.
    pub(super) fn take(&mut self, id: u64, nonce: u64) -> Option<(Response, Option<Instant>)> {
        if !self.is_complete {
            return None;
        }
        for kind in ORDER {
            let Some(response) = self.take_kind(id, kind, nonce) else {
                continue;
            };
            let stream = self.streams.get_mut(&id)?;
            stream.due.retain(|_, names| !names.is_empty());
            stream.refused.retain(|_, names| !names.is_empty());
            if !(stream.due.is_empty() && stream.refused.is_empty()) {
                stream.wake();
                return Some((response, None));
            }
            let since = stream.due_since.take();
            return Some((response, since));
        }
        // All that was due is what the proxy has been told already.
        self.streams.get_mut(&id)?.due_since = None;
        None
    }

    fn take_kind(&mut self, id: u64, kind: ResourceKind, nonce: u64) -> Option<Response> {
        let stream = self.streams.get_mut(&id)?;
        let mut response = Response {
            kind,
            resources: Vec::new(),
            removed: stream
                .refused
                .remove(&kind)
                .unwrap_or_default()
                .into_iter()
                .collect(),
            nonce: nonce.to_string(),
        };
        let mut due = stream.due.remove(&kind).unwrap_or_default();
        let mut size = 0;
        while size < ENOUGH
            && response.resources.len() < MANY
            && let Some(name) = due.pop_first()
        {
            size += self.tell(id, &name, &mut response).unwrap_or(0);
        }
        let stream = self.streams.get_mut(&id)?;
        put_back(stream, kind, due);
        if response.resources.is_empty() && response.removed.is_empty() {
            return None;
        }
        if kind == ResourceKind::Bypass {
            let phase = response.resources.first().map_or(BypassPhase::Off, phase);
            stream.bypass_told = Some((response.nonce.clone(), phase));
        }
        Some(response)
    }

    /// Adds what is known of a name to a response, unless the proxy has been
    /// told that already. Returns how many bytes that took.
    fn tell(&mut self, id: u64, name: &ResourceName, response: &mut Response) -> Option<usize> {
        let is_its_own = self.is_its_own(id, name);
        let stream = self.streams.get_mut(&id)?;
        let told = stream.told.get_mut(name)?;
        let answer = &self.watched.get(name)?.answer;
        match &answer.bytes {
            Some(bytes) if is_its_own => {
                if *told == Told::Version(answer.version) {
                    return None;
                }
                *told = Told::Version(answer.version);
                response.resources.push(Versioned {
                    name: name.to_string(),
                    version: answer.version_text(),
                    bytes: bytes.to_vec(),
                });
                Some(bytes.len())
            }
            // A pod that asks for itself is there, or was a moment ago: of one
            // that we do not know (yet) there is nothing to say.
            None if may_come(name) && *told == Told::Nothing => None,
            _ if *told == Told::Absent => None,
            _ => {
                *told = Told::Absent;
                if !is_its_own {
                    let namespace = &stream.pod().namespace;
                    self.audit
                        .foreign_pod(namespace, &stream.service_account, name);
                }
                let text = name.to_string();
                let size = text.len();
                response.removed.push(text);
                Some(size)
            }
        }
    }

    /// Whether a pod's own resource is asked for by a proxy that has proved the
    /// pod's ServiceAccount. Two pods of a namespace may have different ones.
    fn is_its_own(&self, id: u64, name: &ResourceName) -> bool {
        let (ResourceName::Inbound(pod) | ResourceName::Bypass(pod)) = name else {
            return true;
        };
        let known = self.index.pod(&Key::new(&pod.namespace, &pod.name));
        let stream = self.streams.get(&id);
        match (known, stream) {
            (Some(pod), Some(stream)) => *pod.service_account == *stream.service_account,
            _ => true,
        }
    }
}

fn put_back(stream: &mut Stream, kind: ResourceKind, due: BTreeSet<ResourceName>) {
    if !due.is_empty() {
        stream.due.entry(kind).or_default().extend(due);
    }
}

fn may_come(name: &ResourceName) -> bool {
    matches!(name.kind(), ResourceKind::Inbound | ResourceKind::Bypass)
}

fn phase(bypass: &Versioned) -> BypassPhase {
    match decode(ResourceKind::Bypass, &bypass.bytes) {
        Ok(Resource::Bypass(bypass)) => bypass.phase,
        _ => BypassPhase::Off,
    }
}
