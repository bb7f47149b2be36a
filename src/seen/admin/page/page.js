<base href="./">
