{{/* What all pods of the release have in common. */}}

{{/* The restricted profile of the Pod Security Standards. */}}
{{- define "isocenter.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: {{ .Values.podSecurity.runAsUser | int64 }}
runAsGroup: {{ .Values.podSecurity.runAsGroup | int64 }}
fsGroup: {{ .Values.podSecurity.fsGroup | int64 }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "isocenter.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "isocenter.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: data, mountPath: /data}
- {name: keys, mountPath: /etc/isocenter/keys, readOnly: true}
{{- if ne .Values.wrappingKey.settings.wrapper "kms" }}
- {name: wrap, mountPath: /etc/isocenter/wrap, readOnly: true}
{{- end }}
{{- if .Values.trust.configMap }}
- {name: trust, mountPath: /etc/isocenter/trust, readOnly: true}
{{- end }}
{{- end -}}

{{/* dict root, sizes */}}
{{- define "isocenter.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: {{ .sizes.tmp | quote }}}
- name: data
  emptyDir: {sizeLimit: {{ .sizes.data | quote }}}
- name: keys
  secret:
    secretName: {{ .root.Values.siteKey.existingSecret | quote }}
    # Read by the group of the pod, written by nobody.
    defaultMode: 0440
    items:
      - {key: {{ .root.Values.siteKey.key | quote }}, path: {{ .root.Values.siteKey.key | quote }}}
{{- if ne .root.Values.wrappingKey.settings.wrapper "kms" }}
- name: wrap
  secret:
    secretName: {{ .root.Values.wrappingKey.existingSecret | quote }}
    defaultMode: 0440
    items:
      - {key: {{ .root.Values.wrappingKey.key | quote }}, path: {{ .root.Values.wrappingKey.key | quote }}}
{{- end }}
{{- if .root.Values.trust.configMap }}
- name: trust
  configMap:
    name: {{ .root.Values.trust.configMap | quote }}
    items:
      - {key: {{ .root.Values.trust.key | quote }}, path: {{ .root.Values.trust.key | quote }}}
{{- end }}
{{- end -}}

{{- define "isocenter.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A service: the longest stop that is still in order. Endpoints forget the pod during preStop; then requests in hand
     get drainSeconds, then the service's own drain gets drainSeconds, then connections close. One stage where there
     is no HTTP port: but `asgi` may come with a later release, so two are counted always. */}}
{{- define "isocenter.graceSeconds" -}}
{{ add (.preStopSeconds | int) (mul 2 (ceil .drainSeconds | int)) (.shutdownMarginSeconds | int) }}
{{- end -}}
