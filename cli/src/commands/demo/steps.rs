//! The steps, in the order in which they are told. To add one, write it in the
//! file of its group, its row here, and its row in the README.

use super::story::Step;

mod admission;
mod certificates;
mod continuity;
mod traffic;

pub(super) const ALL: &[Step] = &[
    Step {
        name: "inject",
        title: "A Deployment of a labelled namespace makes a pod, and the webhook adds its sidecar.",
        why: "One label on a namespace, not an edit in every manifest. The kubelet's probes go through \
              the sidecar too, because STRICT would refuse them.",
        prove: |stage| Box::pin(admission::inject(stage)),
    },
    Step {
        name: "skip",
        title: "A pod that opts out is left alone.",
        why: "People move into a mesh pod by pod, and want to know why one is still outside.",
        prove: |stage| Box::pin(admission::skip(stage)),
    },
    Step {
        name: "sidecar-resources",
        title: "A pod brings Istio's annotations for the sidecar's memory and CPU, and they work.",
        why: "Setting one value must not take the others away in silence: that is how sidecars \
              lose their memory limit.",
        prove: |stage| Box::pin(admission::sidecar_resources(stage)),
    },
    Step {
        name: "bad-annotation-refused",
        title: "A pod whose annotation has a typo is refused, in words.",
        why: "A value that is ignored in silence is found weeks later, in an incident.",
        prove: |stage| Box::pin(admission::bad_annotation_refused(stage)),
    },
    Step {
        name: "issue",
        title: "The workloads web/front and shop/cart start, and the CA gives each pod a certificate.",
        why: "An address can be taken over; a key that never leaves its pod cannot. Whoever calls \
              is proved, not assumed.",
        prove: |stage| Box::pin(certificates::issue(stage)),
    },
    Step {
        name: "foreign-identity-refused",
        title: "web/front asks the CA for a certificate in the name of shop/cart.",
        why: "Otherwise one stolen token would open every door.",
        prove: |stage| Box::pin(certificates::foreign_identity_refused(stage)),
    },
    Step {
        name: "mtls",
        title: "front calls cart through both proxies, while a stranger on the wire records it all.",
        why: "The applications speak plain HTTP and change nothing. Nobody on the way can read it, \
              and cart knows for certain who called.",
        prove: |stage| Box::pin(traffic::mtls(stage)),
    },
    Step {
        name: "discovery",
        title: "front dials the Service cart by its address, and control says what that is.",
        why: "Nobody lists upstreams by hand. A proxy asks when its application first dials, and is \
              told of each change, so it knows what its application uses and nothing else.",
        prove: |stage| Box::pin(traffic::discovery(stage)),
    },
    Step {
        name: "permissive-counts-plaintext",
        title: "A client without a sidecar calls a PERMISSIVE port: it is served, and counted.",
        why: "So you see who would break before you turn STRICT on.",
        prove: |stage| Box::pin(traffic::permissive_counts_plaintext(stage)),
    },
    Step {
        name: "strict-refuses-plaintext",
        title: "The same client calls a STRICT port: it is refused, and told why.",
        why: "At three in the morning a connection reset explains nothing. This names the rule.",
        prove: |stage| Box::pin(traffic::strict_refuses_plaintext(stage)),
    },
    Step {
        name: "wrong-peer-refused",
        title: "front calls orders, but at that address cart answers.",
        why: "Addresses are used again. A request must not reach whoever got the address next.",
        prove: |stage| Box::pin(traffic::wrong_peer_refused(stage)),
    },
    Step {
        name: "own-tls-passes",
        title: "An application that brings its own TLS is called through the proxy.",
        why: "Databases have certificates of their own, and their clients must go on seeing them.",
        prove: |stage| Box::pin(traffic::own_tls_passes(stage)),
    },
    Step {
        name: "rotate-under-load",
        title: "Every certificate is replaced, again and again, while requests run.",
        why: "Short-lived certificates are worth having only if replacing them costs no request.",
        prove: |stage| Box::pin(continuity::rotate_under_load(stage)),
    },
    Step {
        name: "ca-away",
        title: "The CA is stopped while requests run, and started again.",
        why: "A control plane that is down must not take the applications down with it.",
        prove: |stage| Box::pin(continuity::ca_away(stage)),
    },
    Step {
        name: "drain",
        title: "One of cart's two replicas is stopped while requests run, some of them slow.",
        why: "Every rollout stops proxies. Nobody should notice.",
        prove: |stage| Box::pin(continuity::drain(stage)),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_lists_exactly_these_steps() {
        let readme = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"));
        let (_, table) = readme.split_once("<!-- demo-steps -->").unwrap();
        let (table, _) = table.split_once("<!-- /demo-steps -->").unwrap();
        let rows: Vec<_> = table
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
            .map(|(name, _)| name)
            .collect();
        let steps: Vec<_> = ALL.iter().map(|step| step.name).collect();
        assert_eq!(rows, steps);
    }
}
