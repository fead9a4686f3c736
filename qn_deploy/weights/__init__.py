"""What a compressed weight is: tables, integers, and how they are packed. It knows nothing of models."""
