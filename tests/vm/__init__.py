"""The VM of `hack/vm`: image and machine, what runs in it, and the tests that only run there."""
