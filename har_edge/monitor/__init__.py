"""What people see of a deployment, and what is wrong with it."""
