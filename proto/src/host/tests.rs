//! Hosts of counters: instant, ordered delivery between them, views changed by hand.
