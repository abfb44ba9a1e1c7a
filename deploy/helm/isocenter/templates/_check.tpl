{{/* Everything that is missing or contradicts itself, said at once. */}}
{{- define "isocenter.check" -}}
{{- $say := list -}}
{{- $values := .Values -}}
{{- if not $values.siteKey.existingSecret -}}
{{- $say = append $say "siteKey.existingSecret: name of the Secret with the site secret (32 random bytes; see values.yaml)" -}}
{{- end -}}
{{- if and (ne $values.wrappingKey.settings.wrapper "kms") (not $values.wrappingKey.existingSecret) -}}
{{- $say = append $say "wrappingKey.existingSecret: name of the Secret with the wrapping key (32 random bytes) or the token; see values.yaml" -}}
{{- end -}}
{{- if not $values.kafka.bootstrap -}}
{{- $say = append $say "kafka.bootstrap: host:port,... of your Kafka brokers" -}}
{{- end -}}
{{- $sasl := hasPrefix "SASL" (default "PLAINTEXT" $values.kafka.settings.security_protocol) -}}
{{- if and $sasl (not $values.kafka.existingSecret) -}}
{{- $say = append $say "kafka.existingSecret: name of the Secret with user name and password, because kafka.settings.security_protocol begins with SASL" -}}
{{- end -}}
{{- if and (not $sasl) $values.kafka.existingSecret -}}
{{- $say = append $say "kafka.existingSecret: given, but kafka.settings.security_protocol does not begin with SASL, so nobody would use it" -}}
{{- end -}}
{{- if not $values.mongo.existingSecret -}}
{{- $say = append $say "mongo.existingSecret: name of the Secret with the connection string of MongoDB" -}}
{{- end -}}
{{- if not $values.s3.endpoint -}}
{{- $say = append $say "s3.endpoint: URL of the object store" -}}
{{- end -}}
{{- if and (eq $values.s3.credentials "secret") (not $values.s3.existingSecret) -}}
{{- $say = append $say "s3.existingSecret: name of the Secret with the access key, or s3.credentials: ambient" -}}
{{- end -}}
{{- if $values.networkPolicy.enabled -}}
{{- $needed := dict "dns" true -}}
{{- range $name, $_ := $values.services -}}
{{- $service := include "isocenter.service" (dict "root" $ "name" $name) | fromYaml -}}
{{- if $service.enabled -}}{{- range $service.connects -}}{{- $_ := set $needed . true -}}{{- end -}}{{- end -}}
{{- end -}}
{{- if not $values.telemetry.otlpEndpoint -}}{{- $_ := unset $needed "otlp" -}}{{- end -}}
{{- $_ := unset $needed "peers" -}}
{{- if eq $values.wrappingKey.settings.wrapper "file" -}}{{- $_ := unset $needed "keys" -}}{{- end -}}
{{- range $peer := keys $needed | sortAlpha -}}
{{- if not (index $values.networkPolicy.egress $peer).to -}}
{{- $say = append $say (printf "networkPolicy.egress.%s.to: where it is (namespaceSelector, podSelector or ipBlock); nothing else can be reached" $peer) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $_ := $values.services -}}
{{- $service := include "isocenter.service" (dict "root" $ "name" $name) | fromYaml -}}
{{- if $service.enabled -}}
{{- $settings := default dict $service.settings -}}
{{- if and (hasKey $settings "serve_everyone_without_sign_in") (ne (toString $settings.serve_everyone_without_sign_in) "true") -}}
{{- $say = append $say (printf "services.%s.settings.serve_everyone_without_sign_in: there is no sign-in yet, so whoever reaches the port reads every study; put a proxy that authenticates in front, let only it in (services.%s.ports.http.from), then say true; or services.%s.enabled: false" $name $name $name) -}}
{{- end -}}
{{- if and $service.autoscaling.enabled (gt (int $service.autoscaling.minReplicas) (int $service.autoscaling.maxReplicas)) -}}
{{- $say = append $say (printf "services.%s.autoscaling: minReplicas is more than maxReplicas" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $say -}}
{{- fail (printf "\n\nisocenter cannot be rendered:\n  - %s\n" (join "\n  - " $say)) -}}
{{- end -}}
{{- end -}}
