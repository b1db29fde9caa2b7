# Short names for the scripts, which do the work: `just test unit`.

# Run the tests: all of them, or the parts that are named.
test *parts:
    ./scripts/test {{ parts }}

# What to run before each commit.
check:
    ./scripts/test lint unit

# The story of Bulkhead, on this machine alone.
demo *arguments:
    cargo run --release -- demo {{ arguments }}

# Fuzz every parser of untrusted bytes, or the targets that are named.
fuzz seconds="60" *targets:
    ./scripts/fuzz {{ seconds }} {{ targets }}
