"""Grafana's dashboards as code, so that no panel asks for a metric that is not there."""
