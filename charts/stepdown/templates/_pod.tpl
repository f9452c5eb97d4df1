{{/* The operator's pod: of a StatefulSet with the ledger's volume, or of a Deployment whose ledger is a database. */}}

{{- define "stepdown.pod" -}}
{{- $tls := include "stepdown.tlsSecret" . }}
{{- $shared := include "stepdown.shared" . }}
{{- $database := .Values.ledger.postgresql }}
{{- $secrets := and $shared (or $database.passwordSecretRef.name $database.caSecretRef.name) -}}
metadata:
  labels:
    {{- include "stepdown.selector" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: operator
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ .Values.serviceAccount.name }}
  automountServiceAccountToken: true
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  securityContext:
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
  containers:
  - name: operator
    image: {{ include "stepdown.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    command: [stepdown, operator]
    env:
    - name: STEPDOWN_NAMESPACE
      valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
    - name: STEPDOWN_IDENTITY
      valueFrom: {fieldRef: {fieldPath: metadata.name}}
    - name: STEPDOWN_FLEET_NAMESPACES
      {{- if .Values.fleetNamespaces }}
      value: {{ join "," .Values.fleetNamespaces | quote }}
      {{- else }}
      valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
      {{- end }}
    # The proxies run this very image.
    - name: STEPDOWN_IMAGE
      value: {{ include "stepdown.image" . }}
    - name: STEPDOWN_IMAGE_PULL_POLICY
      value: {{ .Values.image.pullPolicy }}
    {{- with .Values.imagePullSecrets }}
    - name: STEPDOWN_IMAGE_PULL_SECRETS
      value: {{ join "," . | quote }}
    {{- end }}
    - name: STEPDOWN_ALLOWED_UPSTREAMS
      value: {{ join "," .Values.allowedUpstreams | quote }}
    {{- if $shared }}
    # Where proxies reach this very replica, should they have come to another.
    - name: STEPDOWN_ADDRESS
      valueFrom: {fieldRef: {fieldPath: status.podIP}}
    - name: STEPDOWN_LEDGER
      {{- if $database.urlSecretRef.name }}
      valueFrom: {secretKeyRef: {name: {{ $database.urlSecretRef.name }}, key: {{ $database.urlSecretRef.key }}}}
      {{- else }}
      value: {{ $database.url | quote }}
      {{- end }}
    {{- if $database.passwordSecretRef.name }}
    - name: STEPDOWN_LEDGER_PASSWORD_FILE
      value: /etc/stepdown/ledger/password
    {{- end }}
    {{- if $database.caSecretRef.name }}
    - name: PGSSLMODE
      value: verify-full
    - name: PGSSLROOTCERT
      value: /etc/stepdown/ledger/ca.crt
    {{- end }}
    {{- end }}
    {{- if $tls }}
    - name: STEPDOWN_TLS_DIR
      value: /etc/stepdown/tls
    {{- end }}
    - name: STEPDOWN_LOG_FORMAT
      value: {{ .Values.logFormat }}
    {{- with .Values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    ports:
    - {name: sync, containerPort: 8443}
    - {name: http, containerPort: 9090}
    startupProbe:
      httpGet: {path: /healthz, port: http}
      periodSeconds: 2
      failureThreshold: 60
    livenessProbe:
      httpGet: {path: /healthz, port: http}
      periodSeconds: 10
      timeoutSeconds: 5
      failureThreshold: 6
    readinessProbe:
      httpGet: {path: /readyz, port: http}
      periodSeconds: 5
      timeoutSeconds: 5
    resources:
      {{- toYaml .Values.resources | nindent 6 }}
    securityContext:
      {{- toYaml .Values.securityContext | nindent 6 }}
    volumeMounts:
    - {name: {{ ternary "state" "ledger" (eq $shared "true") }}, mountPath: /var/lib/stepdown}
    - {name: tmp, mountPath: /tmp}
    {{- if $tls }}
    - {name: tls, mountPath: /etc/stepdown/tls, readOnly: true}
    {{- end }}
    {{- if $secrets }}
    - {name: database, mountPath: /etc/stepdown/ledger, readOnly: true}
    {{- end }}
  volumes:
  - name: tmp
    emptyDir: {}
  {{- if $shared }}
  # Nothing lasts here: keys lie in it for a moment.
  - name: state
    emptyDir: {medium: Memory, sizeLimit: 1Mi}
  {{- else if not .Values.persistence.enabled }}
  - name: ledger
    emptyDir: {}
  {{- end }}
  {{- if $tls }}
  - name: tls
    secret: {secretName: {{ $tls }}}
  {{- end }}
  {{- if $secrets }}
  - name: database
    projected:
      sources:
      {{- with $database.passwordSecretRef }}
      {{- if .name }}
      - secret: {name: {{ .name }}, items: [{key: {{ .key }}, path: password}]}
      {{- end }}
      {{- end }}
      {{- with $database.caSecretRef }}
      {{- if .name }}
      - secret: {name: {{ .name }}, items: [{key: {{ .key }}, path: ca.crt}]}
      {{- end }}
      {{- end }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if $shared }}
  # On different nodes, if it can be.
  topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "stepdown.selector" . | nindent 8 }}
  {{- end }}
{{- end }}

{{/* Whether the ledger is a database that replicas share: "true" or nothing. What cannot work is refused here. */}}
{{- define "stepdown.shared" -}}
{{- $replicas := int .Values.replicas -}}
{{- with .Values.ledger -}}
{{- $given := or .postgresql.url .postgresql.urlSecretRef.name .postgresql.passwordSecretRef.name .postgresql.caSecretRef.name -}}
{{- if eq .type "sqlite" -}}
{{- if gt $replicas 1 -}}
{{- fail (printf "replicas is %d: the ledger is a SQLite file on one volume, and a second replica would keep a ledger of its own. Write 1, or 0 to stop the operator (proxies serve on from their leases while it is away); or have the ledger in a database: ledger.type=postgresql." $replicas) -}}
{{- end -}}
{{- if $given -}}
{{- fail "ledger.postgresql is set, but ledger.type is sqlite, so the database would not be used: write ledger.type=postgresql, or leave ledger.postgresql as it is" -}}
{{- end -}}
{{- else -}}
{{- with .postgresql -}}
{{- if and .url .urlSecretRef.name -}}
{{- fail "ledger.postgresql: url and urlSecretRef exclude each other: name the Secret that has the whole address, or write the address without its password" -}}
{{- end -}}
{{- if not (or .url .urlSecretRef.name) -}}
{{- fail "ledger.type is postgresql: say where it is. ledger.postgresql.urlSecretRef.name is a Secret with the whole address (CloudNativePG has one, named CLUSTER-app, with the key uri); or write ledger.postgresql.url without its password, and passwordSecretRef" -}}
{{- end -}}
{{- if regexMatch "^[a-z]+://[^/@]*:[^/@]*@|[?&]password=" .url -}}
{{- fail "ledger.postgresql.url has a password in it, which whoever may read Deployments would read: put it into a Secret, and name that in ledger.postgresql.passwordSecretRef" -}}
{{- end -}}
{{- if and .urlSecretRef.name .passwordSecretRef.name -}}
{{- fail "ledger.postgresql: urlSecretRef's address has the password in it, so passwordSecretRef would not be used: leave one of them out" -}}
{{- end -}}
{{- end -}}
true
{{- end -}}
{{- end -}}
{{- end }}
