"""What a run looks like from inside: attention entropy, logits, spectra; the recorder and the tracker."""
