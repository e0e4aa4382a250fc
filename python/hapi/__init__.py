"""What runs before the C programs: model export and data preparation."""
