//! `docs/annotations.md`, made from the table.

use std::fmt::Write;

use super::Annotation;
use super::TABLE;
use crate::pod_settings::PodSettings;
use crate::sidecar::default_trust_domain;

/// The value where nobody says anything, in the installation's default form.
pub fn default_text(row: &Annotation) -> String {
    let image = "the installation's image".to_owned();
    row.show(&PodSettings::new(default_trust_domain(), image))
}

const INTRODUCTION: &str = "\
# Annotations

<!-- Made from the table in crates/core/src/annotation/table.rs by
     `bulkhead explain --markdown`; a test fails when it differs. -->

Write them on a pod (on the pod template of a Deployment, that is), or on a
namespace as defaults for its pods; what a pod says wins over its namespace, and
that over the installation. A value that cannot be used refuses the pod with a
message that says what is allowed, and so does a name under `bulkhead.io/` that
does not exist. The names of Istio and Linkerd on the right are read where
Bulkhead's own is absent, with the values that those meshes give them.

`bulkhead explain NAME` shows the same on the command line.
";

/// The page, whole.
pub fn markdown() -> String {
    let mut page = INTRODUCTION.to_owned();
    page.push_str("\n| annotation | default | also read as |\n|---|---|---|\n");
    for row in TABLE {
        let short = row.name.rsplit('/').next().unwrap_or(row.name);
        let others: Vec<_> = row
            .compatible
            .iter()
            .map(|other| format!("`{}`", other.name))
            .collect();
        line(
            &mut page,
            format_args!(
                "| [`{}`](#{short}) | `{}` | {} |",
                row.name,
                default_text(row),
                others.join("<br>")
            ),
        );
    }
    for row in TABLE {
        let short = row.name.rsplit('/').next().unwrap_or(row.name);
        line(&mut page, format_args!("\n## {short}\n"));
        line(&mut page, format_args!("{}\n", row.doc));
        line(&mut page, format_args!("- Allowed: {}", row.allowed));
        line(
            &mut page,
            format_args!("- Example: `{}: \"{}\"`", row.name, row.example),
        );
        line(
            &mut page,
            format_args!("- Default: `{}`", default_text(row)),
        );
    }
    page
}

fn line(page: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(page, "{text}").expect("writing to a String cannot fail");
}
