{{/* The stem of all names: at most 40 characters, so that what is made of it ends at 63. */}}
{{- define "trialkeeper.fullname" -}}
{{- $chart := default .Chart.Name .Values.nameOverride -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $name = ternary .Release.Name (printf "%s-%s" .Release.Name $chart) (contains $chart .Release.Name) -}}
{{- end -}}
{{- if gt (len $name) 40 -}}
{{- printf "%s-%s" (trunc 32 $name | trimSuffix "-") (sha256sum $name | trunc 7) -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{- define "trialkeeper.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: trialkeeper
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What tells the pods of one component apart, and never changes: (dict "root" $ "component" "operator") */}}
{{- define "trialkeeper.selector" -}}
app.kubernetes.io/name: trialkeeper
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "trialkeeper.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "trialkeeper.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* (dict "root" $ "image" .Values.image) */}}
{{- define "trialkeeper.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "trialkeeper.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "trialkeeper.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "trialkeeper.reportSecret" -}}
{{- default (printf "%s-report-tls" (include "trialkeeper.fullname" .)) .Values.report.tls.existingSecret -}}
{{- end -}}

{{/* The Secret with the bucket's keys; empty where there is none. */}}
{{- define "trialkeeper.storeSecret" -}}
{{- if eq .Values.storage.mode "embedded" -}}
{{- default (printf "%s-store" (include "trialkeeper.fullname" .)) .Values.store.existingSecret -}}
{{- else if eq .Values.storage.mode "external" -}}
{{- .Values.storage.external.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "trialkeeper.testNamespace" -}}
{{- if .Values.test.namespace -}}
{{- .Values.test.namespace -}}
{{- else -}}
{{- first (append .Values.watchNamespaces .Release.Namespace) -}}
{{- end -}}
{{- end -}}

{{/* The operator's configuration. */}}
{{- define "trialkeeper.config" -}}
{{- $name := include "trialkeeper.fullname" . -}}
{{- $config := dict "watchNamespaces" .Values.watchNamespaces "logLevel" .Values.logLevel "lease" (printf "%s-leader" $name) -}}
{{- if .Values.report.enabled -}}
{{- $url := printf "https://%s-report.%s.svc:8443" $name .Release.Namespace -}}
{{- $_ := set $config "report" (dict "url" $url "tlsDir" "/etc/trialkeeper/tls") -}}
{{- end -}}
{{- $store := dict "mode" .Values.storage.mode -}}
{{- if eq .Values.storage.mode "embedded" -}}
{{- $store = dict "mode" "embedded" "endpoint" (printf "http://%s-store.%s.svc:9000" $name .Release.Namespace) "bucket" .Values.store.bucket "region" .Values.store.region "sts" .Values.store.sts "credentialsDir" "/etc/trialkeeper/store" "caFile" "" -}}
{{- else if eq .Values.storage.mode "external" -}}
{{- $external := .Values.storage.external -}}
{{- $store = dict "mode" "external" "endpoint" $external.endpoint "bucket" $external.bucket "region" $external.region "sts" $external.sts "caFile" (ternary "/etc/trialkeeper/store-ca/ca.crt" "" (ne $external.caBundle.configMap "")) -}}
{{- if $external.existingSecret }}{{ $_ := set $store "credentialsDir" "/etc/trialkeeper/store" }}{{ end -}}
{{- end -}}
{{- $_ := set $config "store" $store -}}
{{- toYaml $config -}}
{{- end -}}

{{/* The pods of trials, as peers of a NetworkPolicy. */}}
{{- define "trialkeeper.trials" -}}
- podSelector:
    matchExpressions: [{key: trialkeeper.dev/experiment, operator: Exists}]
  {{- if .Values.watchNamespaces }}
  namespaceSelector:
    matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: {{ toJson .Values.watchNamespaces }}}]
  {{- else }}
  namespaceSelector: {}
  {{- end }}
{{- end }}

{{/* (dict "root" $ "weight" "0" "delete" "before-hook-creation"); helm shows the log of a pod that is still there. */}}
{{- define "trialkeeper.testMeta" -}}
labels:
  {{- include "trialkeeper.labels" .root | nindent 2 }}
  app.kubernetes.io/component: test
annotations:
  helm.sh/hook: test
  helm.sh/hook-weight: {{ .weight | quote }}
  helm.sh/hook-delete-policy: {{ .delete }}
{{- end }}
