#!/usr/bin/env bash
# A hook for .git/hooks/pre-push or a pre-commit "system" hook: no push with a bundle that fails
# its golden files. Needs no checkpoint and no torch, and takes seconds.
#
#   mllm-export list ci pre-push.sh > .git/hooks/pre-push && chmod +x .git/hooks/pre-push
#   BUNDLES="dist/bundle-pi dist/bundle-pc" git push
#
# Exit codes: 0 every bundle passed, 1 one failed a rung, 2 one could not be checked.
set -u
worst=0
for bundle in ${BUNDLES:-bundle}; do
  mllm-export check "$bundle" --report "$bundle.report"
  code=$?
  if [ "$code" -ne 0 ]; then
    echo "$bundle: exit code $code, see $bundle.report/report.md" >&2
  fi
  if [ "$code" -gt "$worst" ]; then
    worst=$code
  fi
done
exit "$worst"
