{{/* Names and labels. Everything of a release carries its name, so that two releases fit into a namespace. */}}

{{- define "isocenter.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The labels that every pod of the release has, and no other pod. */}}
{{- define "isocenter.releaseSelector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* dict root, name: the labels of one component's pods; they never change. */}}
{{- define "isocenter.selector" -}}
{{ include "isocenter.releaseSelector" .root }}
app.kubernetes.io/component: {{ .name }}
{{- end -}}

{{/* dict root, name: labels of an object. */}}
{{- define "isocenter.labels" -}}
{{ include "isocenter.selector" . }}
app.kubernetes.io/part-of: isocenter
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* dict root, name: labels of a pod. Not the chart's version: a change of the chart alone restarts nothing. */}}
{{- define "isocenter.podLabels" -}}
{{ include "isocenter.selector" . }}
app.kubernetes.io/part-of: isocenter
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- end -}}

{{/* dict root, name, image: the reference of an image; a digest wins over a tag. */}}
{{- define "isocenter.image" -}}
{{- $image := default dict .image -}}
{{- $own := printf "%s%s" .root.Values.image.prefix .name -}}
{{- if .root.Values.image.registry -}}
{{- $own = printf "%s/%s" (trimSuffix "/" .root.Values.image.registry) $own -}}
{{- end -}}
{{- $repository := default $own $image.repository -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (coalesce $image.tag .root.Values.image.tag .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* dict root, name: a service's values over `defaults`, as YAML. What is a group of settings of ours is laid over key by
     key; what is a piece of Kubernetes (strategy, affinity ...) is replaced as a whole.
     Not `merge`: that takes 0, false and "" for "not given". */}}
{{- define "isocenter.service" -}}
{{- $merged := deepCopy .root.Values.defaults -}}
{{- range $key, $value := index .root.Values.services .name -}}
{{- if has $key (list "autoscaling" "probes" "topologySpread" "volumes") -}}
{{- range $inner, $its := $value -}}
{{- $_ := set (get $merged $key) $inner $its -}}
{{- end -}}
{{- else -}}
{{- $_ := set $merged $key $value -}}
{{- end -}}
{{- end -}}
{{- toYaml $merged -}}
{{- end -}}

{{/* A value as the text of an environment variable. Numbers of YAML are floats to Helm, and large ones would come out
     as 4.29e+09. */}}
{{- define "isocenter.text" -}}
{{- if kindIs "float64" . -}}
{{- if eq (floor .) . -}}{{ printf "%.0f" . }}{{- else -}}{{ . }}{{- end -}}
{{- else -}}
{{- toString . -}}
{{- end -}}
{{- end -}}

{{/* dict prefix, settings: lines of a ConfigMap, ISOCENTER_<PREFIX>_<NAME>. */}}
{{- define "isocenter.settings" -}}
{{- range $name := keys .settings | sortAlpha }}
{{ $.prefix }}{{ upper $name }}: {{ include "isocenter.text" (index $.settings $name) | quote }}
{{- end }}
{{- end -}}
