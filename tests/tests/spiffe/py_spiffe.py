"""An application that knows nothing of Bulkhead: py-spiffe, as its users use it.

    py_spiffe.py AUDIENCE

Says what it got and verified, a line each: its X.509-SVID, its JWT-SVID, and then
each X.509-SVID that it is told of, until it is ended. Its gRPC is the one in C.
"""

import sys
import threading

from spiffe import JwtSvid, WorkloadApiClient


def main(audience):
    with WorkloadApiClient() as client:
        context = client.fetch_x509_context()
        svid = context.default_svid
        bundle = context.x509_bundle_set.get_bundle_for_trust_domain(
            svid.spiffe_id.trust_domain
        )
        verify(svid.cert_chain, bundle.x509_authorities)
        bundles = client.fetch_x509_bundles()
        if bundle.x509_authorities != authorities(bundles, svid):
            sys.exit("the trust bundle alone is another than with the SVID")
        print("x509", svid.spiffe_id, flush=True)

        token = client.fetch_jwt_svid(audience={audience}).token
        keys = client.fetch_jwt_bundles().get_bundle_for_trust_domain(
            svid.spiffe_id.trust_domain
        )
        parsed = JwtSvid.parse_and_validate(token, keys, {audience})
        asked = client.validate_jwt_svid(token, audience)
        if parsed.spiffe_id != asked.spiffe_id:
            sys.exit(f"{parsed.spiffe_id} here is {asked.spiffe_id} there")
        print("jwt", parsed.spiffe_id, flush=True)

        failure = []
        failed = threading.Event()

        def fail(error):
            failure.append(error)
            failed.set()

        client.stream_x509_contexts(tell, fail)
        failed.wait()
        sys.exit(f"following X.509-SVIDs: {failure[0]}")


def authorities(bundles, svid):
    return bundles.get_bundle_for_trust_domain(
        svid.spiffe_id.trust_domain
    ).x509_authorities


def verify(chain, roots):
    """The SVID is signed by the next in its chain, and the last by a root."""
    for signed, signer in zip(chain, chain[1:]):
        signed.verify_directly_issued_by(signer)
    last = chain[-1]
    root = next(root for root in roots if root.subject == last.issuer)
    last.verify_directly_issued_by(root)


def tell(context):
    serial = context.default_svid.leaf.serial_number
    print("update", serial.to_bytes((serial.bit_length() + 7) // 8, "big").hex(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
