{{/* What the operator does in every namespace that it serves. It never reads a Secret. */}}
{{- define "trialkeeper.serveRules" -}}
- apiGroups: [trialkeeper.dev]
  resources: [experiments, trials]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [trialkeeper.dev]
  resources: [experiments/status, trials/status]
  verbs: [update, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, delete]
# Of each trial of several pods, so that these find each other.
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, create, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, create, update]
- apiGroups: ["", events.k8s.io]
  resources: [events]
  verbs: [create, patch]
# The Lease trialkeeper-serves says who serves a namespace. Nobody else's Lease can be changed.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, list, create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [trialkeeper-serves]
  verbs: [update, patch]
{{- end -}}

{{- define "trialkeeper.viewRules" -}}
- apiGroups: [trialkeeper.dev]
  resources: [experiments, experiments/status, experiments/scale, trials, trials/status]
  verbs: [get, list, watch]
{{- end -}}

{{/* Who may create an Experiment may run any pod that the namespace admits: as much as `create pods`. */}}
{{- define "trialkeeper.editRules" -}}
- apiGroups: [trialkeeper.dev]
  resources: [experiments]
  verbs: [create, update, patch, delete, deletecollection]
- apiGroups: [trialkeeper.dev]
  resources: [experiments/scale, trials]
  verbs: [update, patch]
{{- end -}}
