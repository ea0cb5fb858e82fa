// Included by generated Metal text, which uses nothing of it.
