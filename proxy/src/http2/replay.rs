//! A request that can be sent once more, to whoever takes it.
//!
//! What a server never looked at may go to another one (RFC 9113, 8.7), whatever its
//! method. So the beginning of its body is kept until there is a response; a body that
//! has grown beyond that is sent only once.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Request, request};
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// How much of a body is kept: as much as HTTP/1 keeps of one in its buffer.
const MAX_KEPT: usize = 16 * 1024;
/// How many pieces of it are kept: each takes memory, also one with nothing in it, and
/// a client may send those without end.
const MAX_PIECES: usize = 256;

/// A request that has not been answered yet.
pub(super) struct Replay<B = Incoming> {
    head: request::Parts,
    shared: Rc<RefCell<Shared<B>>>,
}

struct Shared<B> {
    rest: B,
    /// What was sent so far; nothing where that is too much.
    kept: Option<Kept>,
    /// Where the bytes that came are counted, if anybody wants to know.
    received: Option<Rc<Cell<u64>>>,
    /// How often the request was sent; an earlier sending gets nothing more.
    sendings: usize,
}

#[derive(Default)]
struct Kept {
    data: Vec<Bytes>,
    length: usize,
    trailers: Option<HeaderMap>,
}

impl<B: Body<Data = Bytes>> Replay<B> {
    pub(super) fn new(request: Request<B>, received: Option<Rc<Cell<u64>>>) -> Self {
        let (head, rest) = request.into_parts();
        let shared = Shared {
            rest,
            kept: Some(Kept::default()),
            received,
            sendings: 0,
        };
        Self {
            head,
            shared: Rc::new(RefCell::new(shared)),
        }
    }

    /// The request from its beginning; nothing where that is gone.
    pub(super) fn request(&self) -> Option<Request<Sending<B>>> {
        let mut shared = self.shared.borrow_mut();
        shared.kept.as_ref()?;
        shared.sendings += 1;
        let body = Sending {
            number: shared.sendings,
            next: 0,
            shared: Rc::clone(&self.shared),
        };
        Some(Request::from_parts(self.head.clone(), body))
    }
}

/// There is a response, or there will be none: nothing is kept any more.
impl<B> Drop for Replay<B> {
    fn drop(&mut self) {
        self.shared.borrow_mut().kept = None;
    }
}

/// A request's body on its way to a server.
pub(super) struct Sending<B = Incoming> {
    number: usize,
    /// The next of the pieces that an earlier sending had.
    next: usize,
    shared: Rc<RefCell<Shared<B>>>,
}

impl<B> Shared<B> {
    /// The piece that an earlier sending had in this place.
    fn again(&self, place: usize) -> Option<Frame<Bytes>> {
        let kept = self.kept.as_ref()?;
        match kept.data.get(place) {
            Some(data) => Some(Frame::data(data.clone())),
            None if place == kept.data.len() => kept.trailers.clone().map(Frame::trailers),
            None => None,
        }
    }

    /// Keeps a piece that is about to be sent, where there is room for it.
    fn keep(&mut self, frame: &Frame<Bytes>) {
        if let (Some(received), Some(data)) = (&self.received, frame.data_ref()) {
            received.set(received.get() + data.len() as u64);
        }
        let Some(kept) = &mut self.kept else { return };
        if let Some(data) = frame.data_ref() {
            kept.length += data.len();
            kept.data.push(data.clone());
        }
        kept.trailers = frame.trailers_ref().cloned();
        if kept.length > MAX_KEPT || kept.data.len() > MAX_PIECES {
            self.kept = None;
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Sending<B>
where
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let mut shared = this.shared.borrow_mut();
        if shared.sendings != this.number {
            let elsewhere = io::Error::other("the request was sent elsewhere");
            return Poll::Ready(Some(Err(elsewhere.into())));
        }
        if let Some(frame) = shared.again(this.next) {
            this.next += 1;
            return Poll::Ready(Some(Ok(frame)));
        }
        let frame = ready!(Pin::new(&mut shared.rest).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            shared.keep(frame);
            this.next += 1;
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        let shared = self.shared.borrow();
        shared.again(self.next).is_none() && shared.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let shared = self.shared.borrow();
        let rest = shared.rest.size_hint();
        let kept = shared.kept.as_ref().map_or(&[][..], |kept| &kept.data);
        let again = kept.iter().skip(self.next).map(|data| data.len() as u64);
        let again: u64 = again.sum();
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + again);
        }
        hint.set_lower(rest.lower() + again);
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
    use std::convert::Infallible;

    type Pieces =
        StreamBody<futures::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

    fn replay(pieces: Vec<Frame<Bytes>>) -> Replay<Pieces> {
        let pieces: Vec<_> = pieces.into_iter().map(Ok).collect();
        let body = StreamBody::new(futures::stream::iter(pieces));
        Replay::new(Request::post("/").body(body).unwrap(), None)
    }

    fn data(text: &'static str) -> Frame<Bytes> {
        Frame::data(Bytes::from_static(text.as_bytes()))
    }

    fn next<B>(body: &mut Sending<B>) -> Option<Frame<Bytes>>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        body.frame().now_or_never().unwrap().map(Result::unwrap)
    }

    #[tokio::test]
    async fn what_was_sent_in_vain_is_sent_again_with_the_rest() {
        let mut trailers = HeaderMap::new();
        trailers.insert("checksum", "7".parse().unwrap());
        let replay = replay(vec![
            data("one "),
            data("two"),
            Frame::trailers(trailers.clone()),
        ]);
        let mut first = replay.request().unwrap().into_body();
        assert_eq!(next(&mut first).unwrap().into_data().unwrap(), "one ");
        let second = replay.request().unwrap().into_body();
        assert!(first.frame().await.unwrap().is_err(), "it is not its turn");
        let whole = second.collect().await.unwrap();
        assert_eq!(whole.trailers(), Some(&trailers));
        assert_eq!(whole.to_bytes(), "one two");
        let third = replay.request().unwrap().into_body().collect().await;
        let third = third.unwrap();
        assert_eq!(third.trailers(), Some(&trailers));
        assert_eq!(third.to_bytes(), "one two");
    }

    #[test]
    fn a_body_that_is_too_long_to_keep_is_sent_once() {
        let long = Bytes::from(vec![0; MAX_KEPT + 1]);
        let replay = replay(vec![Frame::data(long)]);
        let mut body = replay.request().unwrap().into_body();
        next(&mut body).unwrap();
        assert!(replay.request().is_none());
    }

    #[test]
    fn a_body_in_more_pieces_than_are_kept_is_sent_once() {
        let replay = replay((0..=MAX_PIECES).map(|_| data("")).collect());
        let mut body = replay.request().unwrap().into_body();
        for _ in 0..MAX_PIECES {
            next(&mut body).unwrap();
        }
        assert!(body.shared.borrow().kept.is_some());
        next(&mut body).unwrap();
        assert!(replay.request().is_none());
    }

    #[test]
    fn nothing_is_kept_of_a_request_that_was_answered() {
        let replay = replay(vec![data("one"), data("two")]);
        let mut body = replay.request().unwrap().into_body();
        next(&mut body).unwrap();
        drop(replay);
        assert_eq!(next(&mut body).unwrap().into_data().unwrap(), "two");
        assert!(body.shared.borrow().kept.is_none());
    }

    #[test]
    fn the_length_that_is_announced_is_that_of_all_that_will_be_sent() {
        let body: BoxBody<_, _> = Full::new(Bytes::from_static(b"whole")).boxed();
        let replay = Replay::new(Request::post("/").body(body).unwrap(), None);
        let mut first = replay.request().unwrap().into_body();
        assert_eq!(first.size_hint().exact(), Some(5));
        next(&mut first).unwrap();
        assert!(first.is_end_stream());
        let second = replay.request().unwrap().into_body();
        assert_eq!(second.size_hint().exact(), Some(5));
        assert!(!second.is_end_stream());
    }
}
