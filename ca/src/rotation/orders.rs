//! Which root people want to sign.

/// What was ordered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Order {
    /// The root that is to sign. One more than the highest there ever was
    /// starts a rotation; an older one that is not retired yet undoes one; none
    /// leaves it with the one that signs now.
    pub root_generation: Option<u64>,
    /// The root to go on to although workloads lack it: whoever is missing then
    /// is cut off.
    pub force_generation: Option<u64>,
}

/// Knows what was ordered.
#[tonic::async_trait]
pub trait Orders: Send + Sync + 'static {
    /// The order as it stands; none where nobody ever gave one, or where that
    /// cannot be known now.
    fn wanted(&self) -> Option<Order>;

    /// Resolves when the order may have changed since it was last asked for.
    async fn changed(&self);
}
