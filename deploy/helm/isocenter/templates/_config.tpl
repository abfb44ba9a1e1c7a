{{/* What the environment of a pod says. Names are those of the settings classes; a test compares them. */}}

{{/* Of every pod: the site and its engines, without secrets. */}}
{{- define "isocenter.config.shared" -}}
{{- $kafka := .Values.kafka -}}
{{- $protocol := default "PLAINTEXT" $kafka.settings.security_protocol -}}
{{- include "isocenter.settings" (dict "prefix" "ISOCENTER_" "settings" .Values.platform.settings) }}
ISOCENTER_DATA_DIR: /data/isocenter
ISOCENTER_SITE_KEY_FILE: {{ printf "/etc/isocenter/keys/%s" .Values.siteKey.key | quote }}
{{- include "isocenter.settings" (dict "prefix" "ISOCENTER_KEYS_" "settings" .Values.wrappingKey.settings) }}
{{- if eq .Values.wrappingKey.settings.wrapper "file" }}
ISOCENTER_KEYS_FILE: {{ printf "/etc/isocenter/wrap/%s" .Values.wrappingKey.key | quote }}
{{- else if eq .Values.wrappingKey.settings.wrapper "transit" }}
ISOCENTER_KEYS_TRANSIT_TOKEN_FILE: {{ printf "/etc/isocenter/wrap/%s" .Values.wrappingKey.key | quote }}
{{- if .Values.trust.configMap }}
ISOCENTER_KEYS_TRANSIT_CA_FILE: {{ printf "/etc/isocenter/trust/%s" .Values.trust.key | quote }}
{{- end }}
{{- end }}
{{- with .Values.telemetry.otlpEndpoint }}
ISOCENTER_OTLP_ENDPOINT: {{ . | quote }}
{{- end }}
ISOCENTER_KAFKA_BOOTSTRAP: {{ $kafka.bootstrap | quote }}
{{- include "isocenter.settings" (dict "prefix" "ISOCENTER_KAFKA_" "settings" $kafka.settings) }}
{{- if and .Values.trust.configMap (hasSuffix "SSL" $protocol) }}
ISOCENTER_KAFKA_CA_FILE: {{ printf "/etc/isocenter/trust/%s" .Values.trust.key | quote }}
{{- end }}
{{- include "isocenter.settings" (dict "prefix" "ISOCENTER_MONGO_" "settings" .Values.mongo.settings) }}
ISOCENTER_S3_ENDPOINT: {{ .Values.s3.endpoint | quote }}
ISOCENTER_S3_SCRATCH_DIR: /data
{{- include "isocenter.settings" (dict "prefix" "ISOCENTER_S3_" "settings" .Values.s3.settings) }}
{{- if and .Values.trust.configMap (hasPrefix "https://" .Values.s3.endpoint) }}
ISOCENTER_S3_CA_FILE: {{ printf "/etc/isocenter/trust/%s" .Values.trust.key | quote }}
{{- end }}
{{- end -}}

{{- define "isocenter.prefix" -}}
{{ printf "ISOCENTER_%s_" (upper . | replace "-" "_") }}
{{- end -}}

{{/* dict root, name, service: of one service. */}}
{{- define "isocenter.config.service" -}}
{{- $prefix := include "isocenter.prefix" .name -}}
{{ $prefix }}HEALTH_HOST: {{ .root.Values.listenAddress | quote }}
{{ $prefix }}HEALTH_PORT: {{ .service.healthPort | int | quote }}
{{ $prefix }}DRAIN_SECONDS: {{ include "isocenter.text" .service.drainSeconds | quote }}
{{- range $port := .service.ports }}
{{ $prefix }}{{ upper $port.hostSetting }}: {{ $.root.Values.listenAddress | quote }}
{{ $prefix }}{{ upper $port.portSetting }}: {{ $port.port | int | quote }}
{{- end }}
{{- include "isocenter.settings" (dict "prefix" $prefix "settings" (default dict .service.settings)) }}
{{- end -}}

{{/* dict root, connects: secrets, by reference. The database's only for those that may call it. */}}
{{- define "isocenter.env.secrets" -}}
{{- if has "mongo" .connects }}
{{- with .root.Values.mongo }}
- name: ISOCENTER_MONGO_URI
  valueFrom: {secretKeyRef: {name: {{ .existingSecret | quote }}, key: {{ .uriKey | quote }}}}
{{- end }}
{{- end }}
{{- if .root.Values.kafka.existingSecret }}
{{- with .root.Values.kafka }}
- name: ISOCENTER_KAFKA_USERNAME
  valueFrom: {secretKeyRef: {name: {{ .existingSecret | quote }}, key: {{ .usernameKey | quote }}}}
- name: ISOCENTER_KAFKA_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ .existingSecret | quote }}, key: {{ .passwordKey | quote }}}}
{{- end }}
{{- end }}
{{- if eq .root.Values.s3.credentials "secret" }}
{{- with .root.Values.s3 }}
- name: ISOCENTER_S3_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ .existingSecret | quote }}, key: {{ .accessKeyKey | quote }}}}
- name: ISOCENTER_S3_SECRET_KEY
  valueFrom: {secretKeyRef: {name: {{ .existingSecret | quote }}, key: {{ .secretKeyKey | quote }}}}
{{- end }}
{{- end }}
{{- end -}}
