//! Bytes both ways, each direction ending by itself.

use std::io;

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, split};

use crate::buffer::{Buffer, Buffered};

/// Counts the bytes of each direction as they pass.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter {
    pub from_client: Counter,
    pub from_server: Counter,
}

/// Copies until both directions have ended. A side that ends its sending (a TCP
/// half-close) may go on receiving, because protocols rely on it.
///
/// # Errors
/// One side broke; the other is to be broken too, which dropping both does.
pub(crate) async fn copy_both_ways<C, S>(
    client: &mut Buffered<C>,
    server: &mut Buffered<S>,
    meter: &Meter,
) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut client_read, mut client_write) = split(&mut client.io);
    let (mut server_read, mut server_write) = split(&mut server.io);
    tokio::try_join!(
        copy(
            &mut client_read,
            &mut client.buffer,
            &mut server_write,
            &meter.from_client
        ),
        copy(
            &mut server_read,
            &mut server.buffer,
            &mut client_write,
            &meter.from_server
        ),
    )?;
    Ok(())
}

async fn copy<R, W>(
    from: &mut R,
    buffer: &mut Buffer,
    to: &mut W,
    passed: &Counter,
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
        passed.inc_by(count as u64);
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
        let copying = async { copy_both_ways(&mut near, &mut far, &meter).await.unwrap() };
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
        assert_eq!((meter.from_client.get(), meter.from_server.get()), (8, 13));
    }
}
