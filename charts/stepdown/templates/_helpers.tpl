{{/* Names are fixed: proxies and kubectl plugins find the operator by them, and there is one operator a cluster. */}}

{{- define "stepdown.selector" -}}
app.kubernetes.io/name: stepdown
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "stepdown.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "stepdown.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: stepdown
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "stepdown.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Whether fleets may run in every namespace: "true" or nothing. */}}
{{- define "stepdown.everywhere" -}}
{{- if has "*" .Values.fleetNamespaces -}}
{{- if gt (len .Values.fleetNamespaces) 1 -}}
{{- fail "fleetNamespaces: \"*\" stands for every namespace, so it stands alone: write [\"*\"], or name the namespaces" -}}
{{- end -}}
true
{{- end -}}
{{- end }}

{{/* The namespaces of fleets, as JSON. */}}
{{- define "stepdown.fleetNamespaces" -}}
{{- .Values.fleetNamespaces | default (list .Release.Namespace) | uniq | toJson -}}
{{- end }}

{{- define "stepdown.tlsSecret" -}}
{{- with .Values.tls -}}
{{- if and .secretName .certManager.enabled -}}
{{- fail "tls: secretName and certManager.enabled exclude each other: name your own Secret, or let cert-manager make one" -}}
{{- end -}}
{{- if .certManager.enabled -}}
{{- if not .certManager.issuerRef.name -}}
{{- fail "tls.certManager.issuerRef.name: name the Issuer (or, with kind: ClusterIssuer, the ClusterIssuer) that signs the certificate" -}}
{{- end -}}
stepdown-tls
{{- else -}}
{{- .secretName -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* What the operator writes for a RoutingProxy, in a fleet's namespace. No Secrets: pods mount them by name. */}}
{{- define "stepdown.fleetRules" -}}
{{- $write := list "get" "list" "watch" "create" "patch" "delete" }}
- apiGroups: [""]
  resources: [services, configmaps, serviceaccounts]
  verbs: {{ $write | toJson }}
- apiGroups: [apps]
  resources: [deployments]
  verbs: {{ $write | toJson }}
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: {{ $write | toJson }}
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: {{ $write | toJson }}
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: {{ $write | toJson }}
# Whose token is this: a pod of the fleet's own Deployment?
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list]
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get]
{{- end }}

{{/* A namespace in which a fleet may run, for the notes. */}}
{{- define "stepdown.home" -}}
{{- if include "stepdown.everywhere" . -}}
{{ .Release.Namespace }}
{{- else -}}
{{ include "stepdown.fleetNamespaces" . | fromJsonArray | first }}
{{- end -}}
{{- end }}
