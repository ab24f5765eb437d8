#!/bin/sh
# Refresh the third-party files of the studio's page from npm (needs node): preact and htm in one file, three and Spark
# in another, which the scene view alone loads. Each is one ES module, minified; their licences are beside them.
set -eu
PAGE="$(cd "$(dirname "$0")/.." && pwd)/src/v2edit/studio/page/vendor"
WORK="$(mktemp -d)"
trap 'rm -rf "$WORK"' EXIT
cd "$WORK"
npm init -y >/dev/null
npm install --silent --no-audit --no-fund --ignore-scripts \
    preact@11.2.0 htm@3.1.1 three@0.187.0 @sparkjsdev/spark@2.2.0 esbuild@0.28.2

cat >ui.js <<'END'
import { h, render, Fragment, createRef } from "preact";
import { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import htm from "htm";
export const html = htm.bind(h);
export { h, render, Fragment, createRef, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState };
END
cat >splats.js <<'END'
export { Color, Matrix4, PerspectiveCamera, Quaternion, Scene, Vector3, WebGLRenderer } from "three";
export { OrbitControls } from "three/examples/jsm/controls/OrbitControls.js";
export { SparkRenderer, SplatMesh } from "@sparkjsdev/spark";
END
for NAME in ui splats; do
    node_modules/.bin/esbuild "$NAME.js" --bundle --minify --format=esm --target=es2022 --legal-comments=none \
        --log-level=error --outfile="$PAGE/$NAME.js"
done

: >"$PAGE/LICENSES.txt"
for NAME in preact htm three @sparkjsdev/spark fflate; do
    VERSION="$(node -p "require('./node_modules/$NAME/package.json').version")"
    printf '== %s %s ==\n\n' "$NAME" "$VERSION" >>"$PAGE/LICENSES.txt"
    if [ -f "node_modules/$NAME/LICENSE" ]; then
        cat "node_modules/$NAME/LICENSE" >>"$PAGE/LICENSES.txt"
    else
        node -p "const p = require('./node_modules/$NAME/package.json'); 'Licence: ' + p.license + ', ' + JSON.stringify(p.author ?? '')" \
            >>"$PAGE/LICENSES.txt"
    fi
    printf '\n\n' >>"$PAGE/LICENSES.txt"
done
ls -l "$PAGE"
