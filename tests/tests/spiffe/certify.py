"""A client of the CSR API that shares nothing with Bulkhead: gRPC's implementation
in C, Python's protobuf, and OpenSSL's cryptography.

    certify.py URL ROOTS TOKEN

Asks the CA for a certificate for each line of its standard input, and says how that
went, a line each. The lines are JSON, as `tests/cluster/go-spiffe` has them.
"""

import json
import sys
import time
import urllib.parse
from datetime import datetime, timezone

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2

PACKAGE = "istio.v1.auth"
SERVICE = f"{PACKAGE}.IstioCertificateService"
# What gRPC does by itself with a call that was refused for load.
RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": SERVICE}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.01s",
                "maxBackoff": "0.01s",
                "backoffMultiplier": 1,
                "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
            },
        }
    ]
}


def messages():
    """Request and response of Istio's security/v1alpha1/ca.proto."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="security/v1alpha1/ca.proto",
        package=PACKAGE,
        syntax="proto3",
        dependency=[struct_pb2.DESCRIPTOR.name],
    )
    request = file.message_type.add(name="IstioCertificateRequest")
    once, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    request.field.add(name="csr", number=1, type=field.TYPE_STRING, label=once)
    request.field.add(name="validity_duration", number=3, type=field.TYPE_INT64, label=once)
    request.field.add(
        name="metadata",
        number=4,
        type=field.TYPE_MESSAGE,
        type_name=".google.protobuf.Struct",
        label=once,
    )
    response = file.message_type.add(name="IstioCertificateResponse")
    response.field.add(name="cert_chain", number=1, type=field.TYPE_STRING, label=many)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return [
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{message.name}"))
        for message in (request, response)
    ]


Request, Response = messages()


def main(url, roots_file, token_file):
    with open(token_file) as token:
        token = token.read()
    with connect(url, roots_file) as channel:
        create = channel.unary_unary(
            f"/{SERVICE}/CreateCertificate",
            request_serializer=Request.SerializeToString,
            response_deserializer=Response.FromString,
        )
        for line in sys.stdin:
            wish = json.loads(line)
            began = time.monotonic()
            answer = ask(create, wish, token)
            answer["milliseconds"] = int((time.monotonic() - began) * 1000)
            print(json.dumps(answer), flush=True)


def connect(url, roots_file):
    target = urllib.parse.urlsplit(url)
    options = [("grpc.service_config", json.dumps(RETRIES))]
    if target.scheme != "https":
        return grpc.insecure_channel(target.netloc, options)
    with open(roots_file, "rb") as roots:
        credentials = grpc.ssl_channel_credentials(roots.read())
    return grpc.secure_channel(target.netloc, credentials, options)


def ask(create, wish, token):
    key = generate(wish["key"])
    csr = request(key, wish)
    message = Request(
        csr=csr.public_bytes(serialization.Encoding.PEM).decode(),
        validity_duration=wish["seconds"],
    )
    message.metadata.update(wish["metadata"])
    metadata = [("clusterid", "Kubernetes")]
    if not wish["anonymous"]:
        metadata.append(("authorization", f"Bearer {token}"))
    try:
        response = create(message, metadata=metadata, timeout=60)
    except grpc.RpcError as refusal:
        return {"code": refusal.code().value[0], "message": refusal.details()}
    return verify(list(response.cert_chain), key)


def verify(elements, key):
    """Takes the answer apart as istio-agent does: the leaf, the certificates above
    it one by one, and all roots in the last element."""
    *chain, roots = [x509.load_pem_x509_certificates(text.encode()) for text in elements]
    if any(len(element) != 1 for element in chain):
        sys.exit("an element of the chain has not one certificate")
    leaf, *intermediates = [element[0] for element in chain]
    if leaf.public_key() != key.public_key():
        sys.exit("the certificate is for another key")
    verifier = PolicyBuilder().store(Store(roots)).build_client_verifier()
    verified = verifier.verify(leaf, intermediates)
    [identity] = verified.subjects
    return {
        "code": 0,
        "message": "",
        "identity": identity.value,
        "seconds": int((leaf.not_valid_after_utc - datetime.now(timezone.utc)).total_seconds()),
        "intermediates": len(intermediates),
        "roots": len(roots),
    }


def generate(kind):
    match kind.split("-"):
        case ["rsa", size]:
            return rsa.generate_private_key(public_exponent=65537, key_size=int(size))
        case ["p", size]:
            curves = {"256": ec.SECP256R1, "384": ec.SECP384R1, "521": ec.SECP521R1}
            return ec.generate_private_key(curves[size]())


def request(key, wish):
    subject = [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in wish["organization"] if name
    ]
    if wish["common_name"]:
        subject.append(x509.NameAttribute(NameOID.COMMON_NAME, wish["common_name"]))
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    names = [x509.UniformResourceIdentifier(uri) for uri in wish["uris"]]
    names += [x509.DNSName(name) for name in wish["dns_names"]]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    return builder.sign(key, hashes.SHA256())


if __name__ == "__main__":
    main(*sys.argv[1:])
