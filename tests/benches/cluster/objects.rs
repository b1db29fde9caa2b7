//! Services and pods that only the API server knows: no node runs the pods, and
//! no scheduler looks at them, but their status says that they are ready, so that
//! Kubernetes' own controller puts them into EndpointSlices.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use bulkhead_tests::cluster::{Cluster, until};
use bulkhead_tests::namespace::Namespace;
use futures::stream::{self, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

/// How many objects are made at a time.
const AT_A_TIME: usize = 32;
/// 198.19.0.0, of the range that RFC 2544 sets apart for benchmarks; its other
/// half has room for the Services.
const FIRST_ADDRESS: u32 = 0xc613_0000;
const SERVICE_RANGE: &str = "198.18.0.0/16";

/// What there is so far.
pub(super) struct Objects<'a> {
    cluster: &'a Cluster,
    /// Each with how many Services it has.
    namespaces: Vec<(Namespace, usize)>,
    /// How many addresses are taken, which is how many pods there are.
    addresses: u32,
}

impl<'a> Objects<'a> {
    /// Gives the cluster addresses for so many Services.
    pub(super) async fn new(cluster: &'a Cluster) -> Self {
        let range = cluster.apply(json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "ServiceCIDR",
            "metadata": {"name": "simulated"},
            "spec": {"cidrs": [SERVICE_RANGE]},
        }));
        range.await;
        Self {
            cluster,
            namespaces: Vec::new(),
            addresses: 0,
        }
    }

    /// Makes what is missing of so many Services in each of so many namespaces,
    /// with so many pods each, and waits until all are in EndpointSlices.
    pub(super) async fn grow(
        &mut self,
        namespaces: usize,
        services: usize,
        pods: u32,
    ) -> Result<()> {
        for number in self.namespaces.len()..namespaces {
            let name = format!("simulated-{number}");
            let namespace = Namespace::create_named(self.cluster.client(), &name, &[], &[]).await;
            self.namespaces.push((namespace, 0));
        }
        let mut missing = Vec::new();
        for (namespace, present) in &mut self.namespaces {
            for number in *present..services {
                missing.push((&*namespace, format!("service-{number}"), self.addresses));
                self.addresses += pods;
            }
            *present = services;
        }
        stream::iter(missing.into_iter().map(anyhow::Ok))
            .try_for_each_concurrent(AT_A_TIME, |(namespace, service, address)| async move {
                create_service(namespace, &service).await?;
                for address in address..address + pods {
                    create_pod(namespace, &service, address).await?;
                }
                Ok(())
            })
            .await?;
        self.all_are_endpoints().await;
        Ok(())
    }

    async fn all_are_endpoints(&self) {
        until("every simulated pod is an endpoint", async || {
            let mut all = 0;
            for (namespace, _) in &self.namespaces {
                all += endpoints(namespace).await;
            }
            (u32::try_from(all) == Ok(self.addresses)).then_some(())
        })
        .await;
    }
}

async fn endpoints(namespace: &Namespace) -> usize {
    let slices = namespace
        .api::<EndpointSlice>()
        .list(&ListParams::default())
        .await;
    let slices = slices.expect("the administrator may list EndpointSlices");
    slices.iter().map(|slice| slice.endpoints.len()).sum()
}

async fn create_service(namespace: &Namespace, name: &str) -> Result<()> {
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "selector": {"app": name},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
            // Else Kubernetes leaves out pods whose node is not there.
            "publishNotReadyAddresses": true,
        },
    }))?;
    let created = namespace
        .api()
        .create(&PostParams::default(), &service)
        .await;
    created.with_context(|| format!("creating Service {name}"))?;
    Ok(())
}

/// A pod that is ready, as far as its status says, and in the mesh.
async fn create_pod(namespace: &Namespace, app: &str, address: u32) -> Result<()> {
    let name = format!("{app}-{address}");
    let pod = pod(&name, app);
    let pods = namespace.api::<Pod>();
    let created = pods.create(&PostParams::default(), &pod).await;
    created.with_context(|| format!("creating pod {name}"))?;
    let address = Ipv4Addr::from_bits(FIRST_ADDRESS + address + 1);
    let status = json!({"status": {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }});
    let patched = pods
        .patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
        .await;
    patched.with_context(|| format!("saying that pod {name} is ready"))?;
    Ok(())
}

/// A pod which nobody runs.
pub(super) fn pod(name: &str, app: &str) -> Pod {
    let pod = json!({
        "metadata": {
            "name": name,
            "labels": {"app": app, "security.istio.io/tlsMode": "istio"},
        },
        "spec": {
            "schedulerName": "nobody",
            "containers": [{"name": "app", "image": "registry.example/app:1"}],
        },
    });
    serde_json::from_value(pod).expect("this is a pod")
}
