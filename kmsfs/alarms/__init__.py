"""Alarms: rules over the audit log as it grows, and what is done when one holds."""
