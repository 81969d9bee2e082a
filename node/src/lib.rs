//! A vantage6 node that takes its container engine by name.
