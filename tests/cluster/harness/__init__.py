"""A real Kubernetes node for tests: no container engine, no way out, nothing left behind.

    commands ──▶ lifecycle ──▶ machine        what the machine must have; programs
                     │    ├──▶ credentials    certificates, keys, kubeconfigs
                     │    ├──▶ configuration  files and command lines of the programs
                     │    ├──▶ cgroups        all processes of a cluster, and their end
                     │    └──▶ network        the namespace that holds it
                     ▼
                    node ──▶ api, images      inside the namespaces: start, wait

`layout` has the names, paths and addresses, `failure` what goes wrong. Python's
own library is all it uses.
"""
