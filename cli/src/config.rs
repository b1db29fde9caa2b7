//! What the environment says about output. Everything else is an argument.

/// Whether people asked for output without colours, by the convention of
/// <https://no-color.org>.
pub(crate) fn is_colour_unwanted() -> bool {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is where the command reads its environment"
    )]
    let read = |name| std::env::var_os(name);
    let has_none = read("TERM").is_some_and(|terminal| terminal == "dumb");
    has_none || read("NO_COLOR").is_some_and(|value| !value.is_empty())
}
