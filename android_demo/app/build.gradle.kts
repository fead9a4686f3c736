plugins {
    alias(libs.plugins.android.application)
}

android {
    namespace = "qndeploy.demo"
    compileSdk = 36
    defaultConfig {
        applicationId = "qndeploy.demo"
        minSdk = 24
        targetSdk = 36
        versionCode = 1
        versionName = "0.1.0"
        testInstrumentationRunner = "androidx.test.runner.AndroidJUnitRunner"
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_11
        targetCompatibility = JavaVersion.VERSION_11
    }
    buildTypes {
        release {
            isMinifyEnabled = true
            isShrinkResources = true
            proguardFiles(getDefaultProguardFile("proguard-android-optimize.txt"))
        }
    }
    splits {
        abi {
            isEnable = true
            reset()
            include("arm64-v8a", "x86_64")
            isUniversalApk = false
        }
    }
    androidResources { noCompress += listOf("onnx", "qnz", "pte", "safetensors") } // mapped where they lie in the APK
    packaging { jniLibs { useLegacyPackaging = true } } // compressed: a smaller download
}

dependencies {
    implementation(project(":qndeploy"))
    implementation(libs.onnxruntime.android)
    implementation(libs.executorch.android)
    androidTestImplementation(libs.test.ext)
    androidTestImplementation(libs.test.runner)
}
