"""Questions from files and from the Hugging Face hub, in the layouts that benchmarks come in."""
