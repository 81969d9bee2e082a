{{- define "v6-node.name" -}}
{{- .Values.nameOverride | default .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- end }}

{{- define "v6-node.namespace" -}}
{{- .Values.namespace | default .Release.Namespace -}}
{{- end }}

{{- /* Where runs are. */ -}}
{{- define "v6-node.runs" -}}
{{- dig "kubernetes" "namespace" "" .Values.runtime | default (include "v6-node.namespace" .) -}}
{{- end }}

{{- define "v6-node.selector" -}}
app.kubernetes.io/name: v6-node
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "v6-node.labels" -}}
{{ include "v6-node.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* Whether V6's `createSecrets` is left as it is; a bare false must not become true. */ -}}
{{- define "v6-node.own-secrets" -}}
{{- if ne (toString (dig "createSecrets" true .Values.node)) "false" }}yes{{ end -}}
{{- end }}

{{- define "v6-node.claim" -}}
{{- .Values.data.claim | default (printf "%s-data" (include "v6-node.name" .)) -}}
{{- end }}

{{- /* A database's label in a variable's name. */ -}}
{{- define "v6-node.variable" -}}
{{- . | upper | replace "-" "_" -}}
{{- end }}

{{- /* Where the node finds the file of a database: by the chart's values, and the label. */ -}}
{{- define "v6-node.file" -}}
{{- $label := .label }}
{{- $entry := get (.root.Values.databases | default dict) $label }}
{{- $path := $entry.path | default "" }}
{{- range dig "databases" "fileBased" (list) .root.Values.node | default list }}
{{- if eq .name $label }}{{ $path = $path | default .originalName }}{{ end }}
{{- end }}
{{- if not $path }}
{{- fail (printf "databases.%s.path: say which file of the claim %s it is" $label $entry.claim) }}
{{- end -}}
/srv/databases/{{ $label }}/{{ trimPrefix "/" $path }}
{{- end }}

{{- /* What cannot work is refused here, before anything of it is in the cluster. */ -}}
{{- define "v6-node.check" -}}
{{- if not .Values.image }}
{{- fail "image: name the image that `v6-node image` has written, in a registry from which the cluster fetches" }}
{{- end }}
{{- $runtime := .Values.runtime }}
{{- $kind := $runtime.kind | default "kubernetes" }}
{{- if ne $kind "kubernetes" }}
{{- fail (printf "runtime.kind is %s: in a cluster a node can only use that" $kind) }}
{{- end }}
{{- range $key := list "data_dir" "runtime_dir" }}
{{- if hasKey $runtime $key }}
{{- fail (printf "runtime.%s: leave it out, the chart says where that is (see data)" $key) }}
{{- end }}
{{- end }}
{{- range $key := list "kubeconfig" "context" }}
{{- if dig "kubernetes" $key "" $runtime }}
{{- fail (printf "runtime.kubernetes.%s: leave it out, the node has an account of the cluster" $key) }}
{{- end }}
{{- end }}
{{- if include "v6-node.own-secrets" . }}
{{- range $key := list "name" "apiKey" }}
{{- if not (dig $key "" $.Values.node) }}
{{- fail (printf "node.%s: give it, or set node.createSecrets to false and make the Secret %s-secrets, as with vantage6's chart" $key $.Release.Name) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and (dig "encryption" "enabled" false .Values.node) (not .Values.privateKey.secret) }}
{{- fail "privateKey.secret: name the Secret that has the organization's private key (node.encryption.enabled is true)" }}
{{- end }}
{{- $labels := list }}
{{- range $database := dig "databases" "fileBased" (list) .Values.node | default list }}
{{- $label := $database.name }}
{{- $labels = append $labels $label }}
{{- if and (not (hasKey ($.Values.databases | default dict) $label)) (not (dig "databases" $label "volume" "" $runtime)) }}
{{- fail (printf "node.databases.fileBased: %s is a file, and a pod sees none of a machine: put it into a claim of the namespace, and name that in databases.%s.claim, or in runtime.databases.%s.volume for a folder or what is large" $label $label $label) }}
{{- end }}
{{- end }}
{{- range $label, $_ := .Values.databases }}
{{- if and (include "v6-node.own-secrets" $) (not (has $label $labels)) }}
{{- fail (printf "databases.%s: there is no database of this name in node.databases.fileBased" $label) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The node's configuration file. */ -}}
{{- define "v6-node.config" -}}
{{- /* What the chart itself does is not the node's business. */ -}}
{{- $node := omit (deepCopy .Values.node) "createSecrets" }}
{{- $files := list }}
{{- range $database := dig "databases" "fileBased" (list) .Values.node | default list }}
{{- if hasKey ($.Values.databases | default dict) $database.name }}
{{- $uri := include "v6-node.file" (dict "root" $ "label" $database.name) }}
{{- $database = merge (dict "uri" $uri) (omit $database "volumePath" "originalName") }}
{{- end }}
{{- $files = append $files $database }}
{{- end }}
{{- if $files }}
{{- $_ := set $node "databases" (merge (dict "fileBased" $files) (get $node "databases")) }}
{{- end }}
{{- $runtime := deepCopy .Values.runtime }}
{{- $own := dict "namespace" (include "v6-node.runs" .) "helper_image" .Values.image }}
{{- $_ := set $runtime "kubernetes" (merge (get $runtime "kubernetes" | default dict) $own) }}
{{- $_ := set $runtime "kind" "kubernetes" }}
{{- $_ := set $runtime "data_dir" "/var/lib/v6-node" }}
{{- $_ := set $runtime "runtime_dir" "/run/v6-node" }}
{{- if .Values.caCertificates }}
{{- $_ := set $runtime "ca_certificates" (append (get $runtime "ca_certificates" | default list) "ca.pem") }}
{{- end }}
{{- dict "node" $node "runtime" $runtime | toYaml }}
{{- end }}
