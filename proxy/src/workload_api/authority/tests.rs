//! What a client sends, as it is read behind the `Reader`.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::workload_api::tests::mesh::{Mesh, Pod};

use super::{
    CONTINUATION, END_HEADERS, FRAME_HEAD, HEADERS, PADDED, PREFACE, PRIORITY, Rewriter, fields,
};

const DATA: u8 = 0x00;
const RST_STREAM: u8 = 0x03;
const SETTINGS: u8 = 0x04;
const END_STREAM: u8 = 0x01;

/// How a field may be written (RFC 7541, 6.2): to be remembered, not, and never.
const REPRESENTATIONS: [u8; 3] = [0x40, 0x00, 0x10];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A string that is not Huffman-coded (RFC 7541, 5.2).
fn string(text: &str) -> Vec<u8> {
    let mut length = text.len();
    let mut written = Vec::new();
    if length < 0x7f {
        written.push(u8::try_from(length).unwrap());
    } else {
        written.push(0x7f);
        length -= 0x7f;
        while length >= 0x80 {
            written.push(u8::try_from(length % 0x80).unwrap() | 0x80);
            length /= 0x80;
        }
        written.push(u8::try_from(length).unwrap());
    }
    written.extend(text.as_bytes());
    written
}

/// A field with its name in full.
fn field(representation: u8, name: &str, value: &str) -> Vec<u8> {
    [vec![representation], string(name), string(value)].concat()
}

/// The fields of a call, as gRPC's C core writes those of its first.
fn call(authority: &str) -> Vec<u8> {
    [
        field(0x40, ":path", "/SpiffeWorkloadAPI/Fetch%58"),
        field(0x40, ":authority", authority),
        vec![0x83, 0x86], // POST, http
        field(0x40, "te", "trailers"),
        field(0x40, "content-type", "application/grpc"),
    ]
    .concat()
}

/// A connection with one frame of fields.
fn connection(block: &[u8]) -> Vec<u8> {
    let headers = frame(HEADERS, END_HEADERS, 1, block);
    [PREFACE.to_vec(), frame(SETTINGS, 0, 0, &[]), headers].concat()
}

fn rewritten(mut bytes: Vec<u8>) -> Vec<u8> {
    Rewriter::default().rewrite(&mut bytes);
    bytes
}

fn assert_untouched(bytes: Vec<u8>) {
    assert_eq!(rewritten(bytes.clone()), bytes);
}

#[test]
fn a_path_in_authority_is_read_as_a_host() {
    let long = "d%2F".repeat(100);
    for (sent, read) in [
        ("run%2Fapi.sock", "run-2Fapi.sock"),
        ("%2Frun%2Fapi.sock", "-2Frun-2Fapi.sock"),
        ("/run/api.sock", "-run-api.sock"),
        (&long, &long.replace('%', "-")),
        ("localhost:80", "localhost:80"),
        ("", ""),
    ] {
        for representation in REPRESENTATIONS {
            let by_name = |value| field(representation, ":authority", value);
            let by_index = |value| [vec![representation | 1], string(value)].concat();
            assert_eq!(
                rewritten(connection(&by_name(sent))),
                connection(&by_name(read))
            );
            assert_eq!(
                rewritten(connection(&by_index(sent))),
                connection(&by_index(read))
            );
        }
    }
}

#[test]
fn however_the_bytes_are_cut_they_are_read_the_same() {
    let bytes = |authority: &str| {
        let (first, second) = (call(authority), call(authority));
        let (head, tail) = second.split_at(40);
        let padded = [&[3][..], &[0; 5], head, b"%//"].concat();
        [
            connection(&first),
            frame(DATA, END_STREAM, 1, &call("a%2Fb")),
            frame(HEADERS, PADDED | PRIORITY, 3, &padded),
            frame(CONTINUATION, 0, 3, &[]),
            frame(CONTINUATION, END_HEADERS, 3, tail),
            connection(&first)[PREFACE.len()..].to_vec(),
        ]
        .concat()
    };
    let (sent, read) = (bytes("run%2Fapi.sock"), bytes("run-2Fapi.sock"));
    for cut in 0..=sent.len() {
        let mut rewriter = Rewriter::default();
        let mut pieces = sent.clone();
        let (first, second) = pieces.split_at_mut(cut);
        rewriter.rewrite(first);
        rewriter.rewrite(second);
        assert_eq!(pieces, read, "cut at {cut}");
    }
    let mut rewriter = Rewriter::default();
    let mut pieces = sent;
    pieces.chunks_mut(1).for_each(|byte| rewriter.rewrite(byte));
    assert_eq!(pieces, read, "byte by byte");
}

#[test]
fn fields_may_go_on_in_another_frame_anywhere() {
    let (sent, read) = (call("run%2Fapi.sock"), call("run-2Fapi.sock"));
    let cut_at = |block: &[u8], cut: usize| {
        let (head, tail) = block.split_at(cut);
        [
            PREFACE.to_vec(),
            frame(HEADERS, 0, 1, head),
            frame(CONTINUATION, END_HEADERS, 1, tail),
        ]
        .concat()
    };
    for cut in 0..=sent.len() {
        assert_eq!(rewritten(cut_at(&sent, cut)), cut_at(&read, cut));
    }
}

#[test]
fn other_fields_are_untouched() {
    for name in [":path", ":authorit", ":authority2", "x-authority", ""] {
        for representation in REPRESENTATIONS {
            assert_untouched(connection(&field(representation, name, "/a%2Fb")));
        }
    }
    // By their place in the table: that of one byte, and of more.
    assert_untouched(connection(&[vec![0x44], string("/a%2Fb")].concat()));
    assert_untouched(connection(&[vec![0x7f, 0x01], string("/a%2Fb")].concat()));
}

#[test]
fn a_huffman_coded_value_is_untouched() {
    // The bytes are those of any code, and the code of `/` and `%` is none of them.
    assert_untouched(connection(b"\x41\x84%/%/"));
    assert_untouched(connection(b"\x40\x84abcd\x02%/"));
}

#[test]
fn what_comes_before_does_not_hide_the_field() {
    for before in [
        &b"\x82"[..],                         // an indexed field
        b"\xff\x80\x01",                      // one far down in the table
        b"\x3f\xe1\x1f",                      // the table's size
        b"\x40\x83abc\x83abc",                // Huffman-coded
        b"\x0f\x2f\x02%%",                    // its name far down in the table
        b"\x41\x00",                          // an empty value
        b"\x40\x0a:authority\x00\x40\x01a\0", // what was :authority and is no more
    ] {
        let block = |value| [before, &field(0x40, ":authority", value)].concat();
        assert_eq!(
            rewritten(connection(&block("a%b"))),
            connection(&block("a-b"))
        );
    }
}

#[test]
fn what_is_not_understood_passes_from_there_on() {
    let call = call("run%2Fapi.sock");
    let good = frame(HEADERS, END_HEADERS, 1, &call);
    let start = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    for bad in [
        // More padding than frame, no room for its length, none for the priority.
        frame(HEADERS, END_HEADERS | PADDED, 1, &[3, 0, 0]),
        frame(HEADERS, END_HEADERS | PADDED, 1, &[]),
        frame(HEADERS, END_HEADERS | PRIORITY, 1, &[0; 4]),
        // Nothing to go on with, other frames between, another stream's.
        frame(CONTINUATION, END_HEADERS, 1, &call),
        [frame(HEADERS, 0, 1, &[]), frame(DATA, 0, 1, &[])].concat(),
        [
            frame(HEADERS, 0, 1, &[]),
            frame(CONTINUATION, END_HEADERS, 3, &call),
        ]
        .concat(),
        // A field that does not end, and a number that no one reads.
        frame(HEADERS, END_HEADERS, 1, b"\x40\x02te\x08trail"),
        frame(HEADERS, END_HEADERS, 1, b"\xff\x80\x80\x80\x80\x01"),
    ] {
        assert_untouched([&start[..], &bad, &good].concat());
    }
    for other in [
        &b"GET /%2F HTTP/1.1\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\n/",
    ] {
        assert_untouched([other, &good].concat());
    }
}

#[test]
fn a_field_is_whole_where_it_ends() {
    let mut block = fields::Fields::default();
    for byte in call("a%2Fb") {
        block.rewrite(&mut [byte]);
    }
    assert!(block.is_whole());
    block.rewrite(&mut [0x40]);
    assert!(!block.is_whole());
}

/// The frames of the server, until it has answered or refused the stream.
async fn answer(connection: &mut UnixStream, wanted: u32) -> u8 {
    loop {
        let mut head = [0; FRAME_HEAD];
        connection.read_exact(&mut head).await.unwrap();
        let [l0, l1, l2, kind, _, s0, s1, s2, s3] = head;
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        connection.read_exact(&mut payload).await.unwrap();
        if u32::from_be_bytes([s0, s1, s2, s3]) == wanted && [HEADERS, RST_STREAM].contains(&kind) {
            return kind;
        }
    }
}

#[tokio::test]
async fn a_client_that_says_the_sockets_path_is_answered_and_so_is_its_next_call() {
    let pod = Pod::start(&Mesh::new()).await;
    let mut client = UnixStream::connect(pod.path()).await.unwrap();
    let block = call("run%2Fapi.sock");
    client.write_all(&connection(&block)).await.unwrap();
    assert_eq!(answer(&mut client, 1).await, HEADERS);
    // All of them are remembered: the newest is the 62nd.
    let again = frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        3,
        b"\xc1\xc0\x83\x86\xbf\xbe",
    );
    client.write_all(&again).await.unwrap();
    assert_eq!(answer(&mut client, 3).await, HEADERS);
}
