"""What several tests share: inputs, exact results, the rule of accuracy, and where losses compute."""
