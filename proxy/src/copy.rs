//! Bytes both ways, each direction ending by itself.

use std::cell::Cell;
use std::io;

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, split};

use crate::buffer::{Buffer, Buffered};

/// Counts the bytes of each direction as they pass.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    pub from_client: Passed,
    pub from_server: Passed,
}

/// Bytes in one direction.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    /// Of all connections that are counted together.
    total: Counter,
    own: Cell<u64>,
}

impl Passed {
    pub(crate) fn counted_in(total: Counter) -> Self {
        Self {
            total,
            own: Cell::default(),
        }
    }

    /// How many there were on this connection.
    pub(crate) fn own(&self) -> u64 {
        self.own.get()
    }

    fn add(&self, count: u64) {
        self.total.inc_by(count);
        self.own.set(self.own.get() + count);
    }
}

/// Copies until both directions have ended. A side that ends its sending (a TCP
/// half-close) may go on receiving, because protocols rely on it. `answered` is told
/// each time that the client says something after the server did: what it said before
/// is done with, as far as anybody can tell who does not know the protocol.
///
/// # Errors
/// One side broke; the other is to be broken too, which dropping both does.
pub(crate) async fn copy_both_ways<C, S>(
    client: &mut Buffered<C>,
    server: &mut Buffered<S>,
    meter: &Meter,
    answered: impl Fn(),
) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let has_answered = Cell::new(false);
    let from_client = |count| {
        meter.from_client.add(count);
        if has_answered.replace(false) {
            answered();
        }
    };
    let from_server = |count| {
        meter.from_server.add(count);
        has_answered.set(true);
    };
    let (mut client_read, mut client_write) = split(&mut client.io);
    let (mut server_read, mut server_write) = split(&mut server.io);
    tokio::try_join!(
        copy(
            &mut client_read,
            &mut client.buffer,
            &mut server_write,
            from_client
        ),
        copy(
            &mut server_read,
            &mut server.buffer,
            &mut client_write,
            from_server
        ),
    )?;
    Ok(())
}

async fn copy<R, W>(
    from: &mut R,
    buffer: &mut Buffer,
    to: &mut W,
    passed: impl Fn(u64),
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    loop {
        if buffer.is_empty() && buffer.fill(from).await? == 0 {
            to.shutdown().await?;
            return Ok(());
        }
        let count = buffer.data().len();
        to.write_all(buffer.data()).await?;
        to.flush().await?;
        buffer.consume(count);
        passed(count as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, duplex};

    #[tokio::test]
    async fn a_half_closed_side_still_receives() {
        let (mut client, near) = duplex(8);
        let (mut server, far) = duplex(8);
        let mut near = Buffered::new(near);
        let mut far = Buffered::new(far);
        let meter = Meter::default();
        let copied = copy_both_ways(&mut near, &mut far, &meter, || {});
        let copying = async { copied.await.unwrap() };
        let talking = async {
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut question = String::new();
            server.read_to_string(&mut question).await.unwrap();
            assert_eq!(question, "question");
            server.write_all(b"a long answer").await.unwrap();
            drop(server);
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "a long answer");
        };
        tokio::join!(copying, talking);
        assert_eq!((meter.from_client.own(), meter.from_server.own()), (8, 13));
    }

    #[tokio::test]
    async fn a_client_that_speaks_again_has_been_answered() {
        let (mut client, near) = duplex(64);
        let (mut server, far) = duplex(64);
        let (mut near, mut far) = (Buffered::new(near), Buffered::new(far));
        let (meter, answers) = (Meter::default(), Cell::new(0));
        let answered = || answers.set(answers.get() + 1);
        let copying = copy_both_ways(&mut near, &mut far, &meter, answered);
        let talking = async {
            for _ in 0..3 {
                client.write_all(b"question").await.unwrap();
                server.read_exact(&mut [0; 8]).await.unwrap();
                server.write_all(b"answer").await.unwrap();
                client.read_exact(&mut [0; 6]).await.unwrap();
            }
            drop((client, server));
        };
        let _ = tokio::join!(copying, talking);
        assert_eq!(answers.get(), 2, "whether the last was all, nobody knows");
    }
}
