"""A client of the CSR API that shares nothing with Bulkhead: gRPC's own C
implementation, and messages encoded by hand from the field numbers that
Istio's security/v1alpha1/ca.proto gives them.

    foreign_client.py ADDRESS SERVER_NAME ROOTS_FILE TOKEN < csr.pem

Prints the certificate chain, or the status that the call was answered with.
"""

import sys

import grpc

METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
CSR = 1
VALIDITY_DURATION = 3
CERT_CHAIN = 1


def varint(number):
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def request(csr, seconds):
    return (
        varint(CSR << 3 | 2) + varint(len(csr)) + csr + varint(VALIDITY_DURATION << 3) + varint(seconds)
    )


def read_varint(message, at):
    number, shift = 0, 0
    while True:
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, at


def response(message):
    chain, at = [], 0
    while at < len(message):
        tag, at = read_varint(message, at)
        assert tag == CERT_CHAIN << 3 | 2, f"a field that the response does not have: {tag}"
        length, at = read_varint(message, at)
        chain.append(message[at : at + length].decode())
        at += length
    return chain


def main():
    address, server_name, roots_file, token = sys.argv[1:]
    with open(roots_file, "rb") as roots:
        credentials = grpc.ssl_channel_credentials(roots.read())
    options = [("grpc.ssl_target_name_override", server_name)]
    with grpc.secure_channel(address, credentials, options) as channel:
        create = channel.unary_unary(METHOD, request_serializer=None, response_deserializer=response)
        try:
            chain = create(
                request(sys.stdin.buffer.read(), 3600),
                metadata=[("authorization", f"Bearer {token}")],
                timeout=30,
            )
        except grpc.RpcError as error:
            sys.exit(f"{error.code().name}: {error.details()}")
    print("".join(chain), end="")


main()
