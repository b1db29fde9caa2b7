"""A server and a client of gRPC's own implementation, with each kind of call.

grpc_peer.py serve PORT
grpc_peer.py talk PORT
"""

import sys
import threading
from concurrent import futures

import grpc

SERVICE = "bulkhead.tests.Echo"
cancelled = threading.Semaphore(0)


def unary(request, context):
    metadata = dict(context.invocation_metadata())
    context.set_trailing_metadata((("said", metadata.get("say", "")),))
    if request == b"fail":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as \u00e4sked")
    if request == b"deadline":
        return str(context.time_remaining() < 1000).encode()
    return request


def server_stream(request, context):
    if request == b"endless":
        context.add_callback(cancelled.release)
        while context.is_active():
            yield b"x" * 1000
        return
    for number in range(int(request)):
        yield str(number).encode()


def client_stream(requests, context):
    return str(sum(len(request) for request in requests)).encode()


def both(requests, context):
    for request in requests:
        yield request


def was_cancelled(request, context):
    return str(cancelled.acquire(timeout=100)).encode()


def serve(port):
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "Both": grpc.stream_stream_rpc_method_handler(both),
        "WasCancelled": grpc.unary_unary_rpc_method_handler(was_cancelled),
        "Slow": grpc.unary_unary_rpc_method_handler(lambda _, context: threading.Event().wait(3)),
    }
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


def talk(port):
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)])
    call = lambda kind, name: getattr(channel, kind)(f"/{SERVICE}/{name}")

    answer, rpc = call("unary_unary", "Unary").with_call(b"hello", metadata=(("say", "so"),))
    assert (answer, rpc.code()) == (b"hello", grpc.StatusCode.OK)
    assert dict(rpc.trailing_metadata())["said"] == "so"
    big = b"x" * 3_000_000
    assert call("unary_unary", "Unary")(big) == big

    try:
        call("unary_unary", "Unary")(b"fail")
        raise AssertionError("it did not fail")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
        assert error.details() == "as \u00e4sked", error

    # The deadline reaches the server, and ends the call where that takes longer.
    assert call("unary_unary", "Unary")(b"deadline", timeout=900) == b"True"
    try:
        call("unary_unary", "Slow")(b"", timeout=0.2)
        raise AssertionError("it did not end")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error

    numbers = list(call("unary_stream", "ServerStream")(b"1000"))
    assert numbers == [str(number).encode() for number in range(1000)]
    pieces = (b"x" * 1000 for _ in range(1000))
    assert call("stream_unary", "ClientStream")(pieces) == b"1000000"

    # Each answer before the next question: nothing is held back until there is more.
    questions = []
    asked = threading.Semaphore(0)

    def ask():
        for number in range(50):
            asked.acquire()
            yield str(number).encode()

    asked.release()
    for answer in call("stream_stream", "Both")(ask()):
        questions.append(answer)
        asked.release()
    assert questions == [str(number).encode() for number in range(50)]

    stream = call("unary_stream", "ServerStream")(b"endless")
    next(stream)
    stream.cancel()
    assert call("unary_unary", "WasCancelled")(b"", timeout=100) == b"True"

    try:
        call("unary_unary", "Nothing")(b"")
        raise AssertionError("there is no such method")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
    print("content")


{"serve": serve, "talk": talk}[sys.argv[1]](int(sys.argv[2]))
